"""Where a training step gets its prefixes: computed anew, or, while what makes them is frozen, once per frame."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from hotpolicy.finetune.frames import Frames
from hotpolicy.finetune.prefix_file import PrefixFile, frame_keys
from hotpolicy.runtime.model.vla import Prefix, Vla


class Prefixes(Protocol):
    def take(self, rows: Tensor) -> Prefix: ...  # rows (batch,) int64


class ComputedPrefixes:
    """The model reads each frame whenever it is asked for; gradients flow where its parameters want them."""

    def __init__(self, model: Vla, frames: Frames):
        self.model, self.frames = model, frames

    def take(self, rows: Tensor) -> Prefix:
        return self.frames.prefix(self.model, rows)


class StoredPrefixes:
    """K/V of every frame in a file, which may be larger than memory. Frames it knew before are not computed."""

    def __init__(self, model: Vla, frames: Frames, file: PrefixFile, at_once: int = 64):
        """Raises TuningError for a full disk. The file has room for all these frames: see `PrefixFile.reserve`."""
        self._file, self._keys = file, frame_keys(frames)
        self.computed = 0  # frames that were not there
        fresh = list({key: row for row, key in enumerate(self._keys) if key not in file}.values())
        with torch.no_grad():
            for rows in torch.tensor(fresh, dtype=torch.int64).split(at_once):
                if len(rows):
                    file.add([self._keys[row] for row in rows.tolist()], frames.prefix(model, rows))
                    self.computed += len(rows)

    def take(self, rows: Tensor) -> Prefix:
        return self._file.take([self._keys[row] for row in rows.tolist()])


class CachedPrefixes:
    """K/V of every frame in memory, in the model's own precision: exactly what the model would compute again.

    A frame is one row, so that a batch is gathered in one move."""

    def __init__(self, source: Prefixes, frames: Frames, at_once: int = 64):
        """`source` is asked once for every frame, for `at_once` at a time."""
        self._mask = torch.empty(len(frames), 0, dtype=torch.bool)
        self._stored = torch.empty(0)
        with torch.no_grad():
            # padding is not computed, so a batch is as wide as its longest instruction: the widest comes first
            for rows in frames.token_mask.sum(1).argsort(descending=True).split(at_once):
                self._store(rows, source.take(rows), len(frames))

    @property
    def bytes(self) -> int:
        return self._stored.numel() * self._stored.element_size()

    def take(self, rows: Tensor) -> Prefix:
        keys, values = self._stored[rows].unbind(1)
        return Prefix(keys.unbind(1), values.unbind(1), self._mask[rows])

    def _store(self, rows: Tensor, prefix: Prefix, total: int) -> None:
        # (batch, 2, layers, kv_heads, tokens, head_dim)
        part = torch.stack([torch.stack(prefix.keys, 1), torch.stack(prefix.values, 1)], 1)
        if not len(self._stored):
            self._stored = part.new_zeros((total, *part.shape[1:]))
            self._mask = prefix.mask.new_zeros((total, prefix.mask.shape[1]))
        tokens = prefix.mask.shape[1]
        self._stored[rows, :, :, :, :tokens], self._mask[rows, :tokens] = part, prefix.mask


def longest(model: Vla, frames: Frames) -> Prefix:
    """The prefix of the frame with most words: none of them is larger."""
    with torch.no_grad():
        return frames.prefix(model, frames.token_mask.sum(1).argmax()[None])


def frame_bytes(prefix: Prefix) -> int:
    """What one frame's K/V take."""
    return sum(part.numel() * part.element_size() for part in (*prefix.keys, *prefix.values))
