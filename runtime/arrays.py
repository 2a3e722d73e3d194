"""Arrays as they stand in a message's header, and which there may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

ARRAY = "$a"
RING = "ring"  # in an array's place, and the header's field that says which ring and slot
ENCODINGS = ("jpeg",)

# Booleans, integers and floats; no object, string or time dtype can be named on this wire.
DTYPES = {
    name: np.dtype(name)
    for name in ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
SCALARS = frozenset((type(None), bool, int, float, str, bytes))

Buffer = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Lent:
    """Stands for a uint8 array that lies in the sender's ring."""

    shape: tuple[int, ...]
    offset: int  # bytes, from the beginning of the slot


@dataclass(frozen=True, slots=True)
class Encoded:
    """A picture as it travels; whoever receives it decodes it, if it is what it says."""

    encoding: str  # one of ENCODINGS
    shape: tuple[int, ...]  # (height, width, 3) of the uint8 pixels
    data: Buffer


class Loan(Protocol):
    """A slot of a client's ring, as a reader has it."""

    pixels: memoryview
