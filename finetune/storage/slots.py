"""Camera frames in memory that a recorder and its encoder process both map.

The memory has no name: it is a memfd, or where there are none a file that was removed at once. So the kernel frees it
with the last process that maps it, in whatever way that ended; and it is not in /dev/shm, of which a container may have
very little.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

Shape = tuple[int, int, int]  # (height, width, 3), uint8


class Slots:
    """For each camera a row of slots, of one frame each. Who may write or read one is agreed on by messages."""

    def __init__(self, file: int, shapes: Mapping[str, Shape], counts: Mapping[str, int], writes: bool):
        """Map the open `file`; the map outlives it. `counts`: slots of each camera."""
        self.counts = dict(counts)
        self._shapes = dict(shapes)
        size = sum(int(np.prod(shapes[column])) * counts[column] for column in shapes)
        mapped = mmap.mmap(file, size, prot=mmap.PROT_READ | (mmap.PROT_WRITE if writes else 0))
        content, at = np.frombuffer(mapped, np.uint8), 0
        self._frames: dict[str, np.ndarray] = {}  # (slots, height, width, 3)
        for column, shape in shapes.items():
            end = at + int(np.prod(shape)) * counts[column]
            self._frames[column] = content[at:end].reshape(counts[column], *shape)
            at = end

    @classmethod
    def create(cls, shapes: Mapping[str, Shape], room: float) -> tuple[int, Slots]:
        """New ones, of at most `room` bytes for each camera, but at least one slot; and the file to map them by, for
        the caller to close. Only pages that were written to take memory."""
        counts = {column: max(1, int(room // np.prod(shape))) for column, shape in shapes.items()}
        file = _nameless()
        try:
            os.ftruncate(file, sum(int(np.prod(shapes[column])) * counts[column] for column in shapes))
            return file, cls(file, shapes, counts, writes=True)
        except BaseException:
            os.close(file)
            raise

    def to_dict(self) -> dict[str, Any]:
        """What the other process needs besides the file."""
        return {"shapes": self._shapes, "counts": self.counts}

    @classmethod
    def attach(cls, file: int, data: Mapping[str, Any]) -> Slots:
        """Map the other process's, for reading only."""
        return cls(file, {column: tuple(shape) for column, shape in data["shapes"].items()}, data["counts"], False)

    def shape(self, column: str) -> Shape:
        return self._shapes[column]

    def frame(self, column: str, slot: int) -> np.ndarray:
        """(height, width, 3) uint8, where it lies."""
        return self._frames[column][slot]


def _nameless() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("hotpolicy-frames", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
