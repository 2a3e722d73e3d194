"""The checksum of Dynamixel's protocol 2.0: CRC-16 with polynomial 0x8005, unreflected, from 0."""

from __future__ import annotations

from array import array
from functools import lru_cache
from struct import Struct

import numpy as np


def _crc_table() -> array[int]:
    """What two bytes, taken as one number, make of a CRC of 0."""
    one: np.ndarray = np.arange(256, dtype=np.uint16) << 8
    for _ in range(8):
        one = one << 1 ^ (one >> 15) * np.uint16(0x8005)
    first = np.repeat(one, 256)
    both = first << 8 ^ one[first >> 8 ^ np.tile(np.arange(256, dtype=np.uint16), 256)]
    return array("H", both.tobytes())


_CRC = _crc_table()
_pairs = lru_cache(maxsize=512)(lambda count: Struct(f">{count}H").unpack_from)


def crc16(data: bytes, crc: int = 0) -> int:
    """CRC-16 with polynomial 0x8005, unreflected, from 0 or going on from `crc`. Two bytes a step, as this is most of
    the work of a frame."""
    table = _CRC
    for pair in _pairs(len(data) >> 1)(data):
        crc = table[crc ^ pair]
    return crc << 8 & 0xFF00 ^ table[crc >> 8 ^ data[-1]] if len(data) & 1 else crc


def crc_of_word(word: int, crc: int) -> int:
    """The same for two bytes, taken as one number with the first of them on top."""
    return _CRC[crc ^ word]
