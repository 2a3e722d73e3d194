"""Camera frames that wait on disk for an encoder that is behind: first in, first out."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np

from hotpolicy.finetune.storage.disk import require_room


class Spill:
    """Raw images of one size in one file. One thread puts; one other takes, in order, never more than was put."""

    def __init__(self, path: Path, shape: tuple[int, int, int]):
        """`shape`: (height, width, 3) of every image, uint8. Nothing is made before the first image comes."""
        self.path = path
        self._shape = shape
        self._size = int(np.prod(shape))  # bytes of an image
        self._file: int | None = None
        self._put = self._taken = 0  # images since the file was last begun anew

    def put(self, image: np.ndarray) -> int:
        """Returns the image's place in the file. Raises OSError when the disk is full, or would soon be (see
        `disk.require_room`)."""
        require_room(self.path.parent, self._size)
        if self._file is None:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        if self._put == self._taken:
            self._put = self._taken = 0  # all was taken: use the same space again
        written = os.pwrite(self._file, np.ascontiguousarray(image).data.cast("B"), self._put * self._size)
        if written != self._size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._put += 1
        return self._put - 1

    def get(self) -> np.ndarray:
        """Take the longest waiting image, (height, width, 3) uint8. Raises OSError when the disk does not give it
        back."""
        assert self._file is not None
        image = read_image(self._file, self._taken, self._shape)
        self.taken()
        return image

    def taken(self) -> None:
        """Somebody has read the longest waiting image from the file."""
        self._taken += 1

    def close(self) -> None:
        """Remove the file; more than once is harmless."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
            self.path.unlink(missing_ok=True)


def read_image(file: int, place: int, shape: tuple[int, int, int]) -> np.ndarray:
    """The image at a place of an open file of them. Raises OSError when the disk does not give it back."""
    size = int(np.prod(shape))
    content = os.pread(file, size, place * size)
    if len(content) != size:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return np.frombuffer(content, np.uint8).reshape(shape)
