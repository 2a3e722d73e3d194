"""K/V of frames in a file, so that no later run computes them again: rounds of a session, or a run that goes on.

One folder per set of weights that make prefixes, and in it records of one size and an index of the frames they are of.
A frame is known by what the model reads of it: pixels and words (and state, where that is among the words). A record is
in the index only once it is on the disk, so a crash costs what was not yet written and never brings a wrong one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from hotpolicy.finetune.frames import Frames
from hotpolicy.runtime import durable
from hotpolicy.runtime.errors import TuningError
from hotpolicy.runtime.model.vla import Prefix

DIGEST = 32  # hex digits of a frame in the index
RECORDS, INDEX, LOCK = "records.bin", "index.txt", "lock"


def frame_keys(frames: Frames) -> list[str]:
    """What the model reads of each frame, as a digest."""
    return [
        hashlib.sha256(image.numpy().tobytes() + tokens[mask].numpy().tobytes()).hexdigest()[:DIGEST]
        for image, tokens, mask in zip(frames.images, frames.tokens, frames.token_mask, strict=True)
    ]


class PrefixFile:
    """Open one with `open`. Records are (2, layers, kv_heads, places, head_dim) of one dtype, keys then values; what
    is beyond a frame's own tokens is zero. One process at a time."""

    def __init__(self, folder: Path, lock: FileLock, shape: Sequence[int], dtype: torch.dtype, limit: int):
        self.folder, self._lock = folder, lock
        self.shape, self.dtype = tuple(shape), dtype
        self._numbers = torch.Size(self.shape).numel()
        self.record_bytes = self._numbers * dtype.itemsize
        self.capacity = limit // self.record_bytes  # records
        self._places: dict[str, tuple[int, int]] = {}  # frame -> number of its record, tokens in it
        self._read_index()

    @classmethod
    def open(cls, home: Path, weights: str, example: Prefix, places: int, limit: int) -> PrefixFile | None:
        """The file of these weights (a digest), for prefixes like `example` of at most `places` tokens; None while
        another process has it. Files of other weights are removed, oldest use first, until all take `limit` bytes
        at most. Raises TuningError when the folder cannot be written."""
        key, value = example.keys[0], len(example.keys)
        shape = (2, value, key.shape[1], places, key.shape[3])
        name = hashlib.sha256(f"{weights} {shape} {key.dtype}".encode()).hexdigest()[:16]
        folder = home / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / LOCK)
            lock.acquire(timeout=0)
            os.utime(folder)
            file = cls(folder, lock, shape, key.dtype, limit)
            _make_room(home, folder, limit)
        except Timeout:
            return None
        except OSError as error:
            raise TuningError(f"{folder}: prefixes cannot be kept there: {error.strerror}") from error
        return file

    def __contains__(self, frame: str) -> bool:
        return frame in self._places

    def reserve(self, frames: Iterable[str]) -> bool:
        """Whether all these frames have a place. What is there is forgotten if it takes up theirs."""
        needed = set(frames)
        if len(needed) > self.capacity:
            return False
        if len(needed | self._places.keys()) > self.capacity:
            self._clear()
        return True

    def add(self, frames: Sequence[str], prefix: Prefix) -> None:
        """Raises TuningError for a full disk; the frames before it stay readable."""
        tokens = prefix.mask.sum(1)
        record = torch.zeros(len(frames), *self.shape, dtype=self.dtype)
        places = prefix.mask.shape[1]
        record[:, 0, :, :, :places] = torch.stack(prefix.keys, 1)
        record[:, 1, :, :, :places] = torch.stack(prefix.values, 1)
        first = len(self._places)
        try:
            with (self.folder / RECORDS).open("r+b" if first else "wb") as file:
                file.seek(first * self.record_bytes)
                file.write(record.view(torch.uint8).numpy().tobytes())
                file.flush()
                os.fsync(file.fileno())
            lines = [f"{frame} {count}\n" for frame, count in zip(frames, tokens.tolist(), strict=True)]
            with (self.folder / INDEX).open("a") as file:
                file.write("".join(lines))
        except OSError as error:
            raise TuningError(f"{self.folder}: prefixes cannot be kept: {error.strerror}") from error
        for number, (frame, count) in enumerate(zip(frames, tokens.tolist(), strict=True), start=first):
            self._places[frame] = (number, count)

    def take(self, frames: Sequence[str]) -> Prefix:
        """In the order asked for. Pages are the system's: it keeps in memory what it has room for."""
        numbers, counts = zip(*(self._places[frame] for frame in frames), strict=True)
        longest = max(counts)
        held = self._mapped()[list(numbers)][..., :longest, :]
        keys, values = held.unbind(1)
        mask = torch.arange(longest) < torch.tensor(counts)[:, None]
        return Prefix(keys.unbind(1), values.unbind(1), mask)

    def close(self) -> None:
        self._lock.release()

    def _mapped(self) -> Tensor:
        count = len(self._places)
        path = str(self.folder / RECORDS)
        numbers = torch.from_file(path, shared=False, size=count * self._numbers, dtype=self.dtype)
        return numbers.view(count, *self.shape)

    def _read_index(self) -> None:
        """Up to the first line that is torn, or whose record is not there."""
        path, records = self.folder / INDEX, self.folder / RECORDS
        if not (path.exists() and records.exists()):
            self._clear()
            return
        whole = records.stat().st_size // self.record_bytes
        good = 0
        for number, line in enumerate(path.read_text(encoding="ascii", errors="replace").splitlines(keepends=True)):
            frame, _, count = line.rstrip("\n").partition(" ")
            if number >= whole or len(frame) != DIGEST or not count.isdigit() or not line.endswith("\n"):
                break
            self._places[frame] = (number, int(count))
            good += len(line)
        os.truncate(path, good)

    def _clear(self) -> None:
        self._places.clear()
        for name in (INDEX, RECORDS):
            durable.write_file(self.folder / name, b"")


def _make_room(home: Path, mine: Path, limit: int) -> None:
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in home.iterdir() if path.is_dir()}
    for path in sorted(sizes, key=lambda path: path.stat().st_mtime):
        if sum(sizes.values()) <= limit:
            return
        if path == mine:
            continue
        with suppress(Timeout), FileLock(path / LOCK).acquire(timeout=0):  # one in use stays
            shutil.rmtree(path, ignore_errors=True)
            del sizes[path]
