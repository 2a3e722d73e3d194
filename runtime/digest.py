"""Digests of files and tensors, read in blocks, so that what is larger than memory has one too."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 1 << 20  # bytes; a block that was read once is still in the processor's cache when it is looked at again

# What all exponent bits set look like: in IEEE's formats, NaN and infinity have them all, and nothing else has.
EXPONENTS: dict[str, np.unsignedinteger[Any]] = {
    "float64": np.uint64(0x7FF0 << 48), "float32": np.uint32(0x7F800000), "float16": np.uint16(0x7C00),
    "bfloat16": np.uint16(0x7F80),
}  # fmt: skip


def file_sha256(path: Path) -> str:
    """Hexadecimal. Raises OSError when the file cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


class TensorDigest:
    """Of one tensor's bytes, block by block: their sha256, and whether every number is finite."""

    def __init__(self, dtype: np.dtype[Any]):
        self._sha256, self.finite = hashlib.sha256(), True
        self._exponent = EXPONENTS.get(dtype.name)

    def update(self, block: np.ndarray) -> None:
        """block (bytes,) uint8: whole numbers of the tensor's dtype."""
        self._sha256.update(block.data)
        if self._exponent is not None and block.size:
            bits = block.view(self._exponent.dtype)
            self.finite &= bool(np.bitwise_and(bits, self._exponent).max() != self._exponent)

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


def blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """An array in row-major order as its bytes, (bytes,) uint8 at a time; nothing is copied."""
    flat = array.reshape(-1).view(np.uint8)
    for start in range(0, flat.size, BLOCK):
        yield flat[start : start + BLOCK]


def tensor_digest(array: np.ndarray) -> TensorDigest:
    """Of an array in row-major, little-endian order. Needs no memory beyond a block, and holds no lock meanwhile."""
    digest = TensorDigest(array.dtype)
    for block in blocks(array):
        digest.update(block)
    return digest
