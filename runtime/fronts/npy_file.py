"""A .npy file in memory, taken apart without numpy, which evaluates a header first and judges it afterwards."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

import numpy as np
from numpy.lib import format as npy

MAGIC = b"\x93NUMPY"
HEADER = re.compile(  # as numpy writes it for an array of numbers; anything else is none of a robot's
    rb"\{'descr': '([<>|][biuf]\d{1,2})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,10}, ?)*\d{0,10})\), \} *\n"
)
HEADER_BYTES = 512


@dataclass(frozen=True, slots=True)
class NpyFile:
    dtype: str  # e.g. "<f4"
    shape: list[int]
    fortran: bool  # the first axis changes fastest
    data: memoryview  # whatever is behind the header


def split(file: bytes) -> NpyFile | None:
    """None: not a .npy file of booleans, integers or floats. The data may still be of another length than the shape."""
    if file[:6] != MAGIC or len(file) < 12 or file[6] not in (1, 2, 3):
        return None
    begin = 10 if file[6] == 1 else 12
    length = int.from_bytes(file[8:begin], "little")
    header = HEADER.fullmatch(file[begin : begin + min(length, HEADER_BYTES)])
    if header is None:
        return None
    shape = [int(size) for size in header[3].replace(b" ", b"").split(b",") if size]
    return NpyFile(header[1].decode(), shape, header[2] == b"True", memoryview(file)[begin + length :])


def join(array: np.ndarray) -> bytes:
    """The bytes that np.save writes of an array of numbers in C order."""
    file = io.BytesIO()
    npy.write_array_header_1_0(file, {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape})
    return file.getvalue() + array.tobytes()
