"""Which way a stage gets its prefixes: from memory, from a file, or computed at every step; and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hotpolicy.finetune.cache import (
    CachedPrefixes,
    ComputedPrefixes,
    Prefixes,
    StoredPrefixes,
    frame_bytes,
    longest,
)
from hotpolicy.finetune.frames import Frames
from hotpolicy.finetune.prefix_file import PrefixFile, frame_keys
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.runtime.errors import TuningError
from hotpolicy.runtime.model.vla import Prefix, Vla


@dataclass(frozen=True, slots=True)
class PrefixHome:
    """Where K/V may be kept from run to run."""

    folder: Path
    weights: str  # digest of all weights that make prefixes


@dataclass(frozen=True)
class Sources:
    train: Prefixes
    watched: Mapping[str, Prefixes] = field(default_factory=dict)  # held-out frames, by side; none: computed
    kept_bytes: int = 0  # of K/V, in memory or on disk
    computed: int | None = None  # frames that no file knew; None: there was no file
    note: str = ""  # why nothing is kept, where it was asked for
    file: PrefixFile | None = None  # to be closed when the stage ends

    def close(self) -> None:
        if self.file:
            self.file.close()


def choose(
    model: Vla, frames: Frames, watched: Mapping[str, Frames], frozen: bool, config: TuneConfig, home: PrefixHome | None
) -> Sources:
    """`frozen`: whether nothing that makes prefixes learns. Raises TuningError where they must be kept and cannot."""
    plain = Sources(ComputedPrefixes(model, frames))
    if not frozen or config.caching == "off":
        return plain
    parts = {"": frames, **watched}
    largest = max((longest(model, part) for part in parts.values()), key=frame_bytes)
    needed = frame_bytes(largest) * sum(map(len, parts.values()))
    in_memory = needed <= config.cache_bytes
    file = _file(parts, home, largest, config.disk_bytes)
    if file is None and not in_memory:
        text = f"prefix cache: {needed / 1e6:.0f} MB needed, {config.cache_bytes / 1e6:.0f} MB allowed"
        if config.caching == "require":
            raise TuningError(text)
        return Sources(plain.train, note=f"{text}: prefixes are computed anew at every step")
    computed = None
    found: dict[str, Prefixes] = {name: ComputedPrefixes(model, part) for name, part in parts.items()}
    if file is not None:
        stored = {name: StoredPrefixes(model, part, file, config.at_once) for name, part in parts.items()}
        computed, found = sum(source.computed for source in stored.values()), dict(stored)
    if in_memory:
        found = {name: CachedPrefixes(found[name], part, config.at_once) for name, part in parts.items()}
    return Sources(found.pop(""), found, needed, computed, file=file)


def _file(parts: Mapping[str, Frames], home: PrefixHome | None, largest: Prefix, limit: int) -> PrefixFile | None:
    """One that has room for all frames; None when there is none, or another process has it."""
    if home is None or not limit:
        return None
    # a record has room for the longest instruction there could be, so that other words need no other file
    words = max(int(part.token_mask.sum(1).max()) for part in parts.values())
    places = largest.mask.shape[1] - words + max(part.tokens.shape[1] for part in parts.values())
    file = PrefixFile.open(home.folder, home.weights, largest, places, limit)
    if file and not file.reserve(key for part in parts.values() for key in frame_keys(part)):
        file.close()
        return None
    return file
