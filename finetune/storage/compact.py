"""Thrift's compact encoding, as far as parquet's page headers and footers use it. Knows no field's meaning.

A struct is a dict of field number -> (type, value), a list a pair of element type and values.
"""

from __future__ import annotations

from typing import Any

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12
Struct = dict[int, tuple[int, Any]]


def read_struct(data: bytes | memoryview, at: int) -> tuple[Struct, int]:
    """The struct that begins at `at`, and where it ends. Raises ValueError or IndexError when there is none."""
    found: Struct = {}
    number = 0
    while (head := data[at]) != 0:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _zigzag(data, at)
        kind = head & 15
        value, at = (kind == TRUE, at) if kind in (TRUE, FALSE) else _read(data, at, kind)
        found[number] = kind, value
    return found, at + 1


def write_struct(struct: Struct) -> bytes:
    """The other way round."""
    out, last = b"", 0
    for number, (kind, value) in sorted(struct.items()):
        kind = (TRUE if value else FALSE) if kind in (TRUE, FALSE) else kind
        step = number - last
        out += bytes([step << 4 | kind]) if 0 < step < 16 else bytes([kind]) + _varint(number << 1)
        out += b"" if kind in (TRUE, FALSE) else _write(kind, value)
        last = number
    return out + b"\0"


def _read(data: bytes | memoryview, at: int, kind: int) -> tuple[Any, int]:
    if kind in (I16, I32, I64):
        return _zigzag(data, at)
    if kind == BYTE or kind in (TRUE, FALSE):  # a bool in a list has a byte of its own
        return data[at], at + 1
    if kind == STRUCT:
        return read_struct(data, at)
    if kind == DOUBLE:
        return bytes(data[at : at + 8]), at + 8
    if kind == BINARY:
        size, at = _unsigned(data, at)
        if at + size > len(data):
            raise ValueError("ends within a string")
        return bytes(data[at : at + size]), at + size
    if kind in (LIST, SET):
        head, at = data[at], at + 1
        size, element = head >> 4, head & 15
        if size == 15:
            size, at = _unsigned(data, at)
        values = []
        for _ in range(size):
            value, at = _read(data, at, element)
            values.append(value)
        return (element, values), at
    raise ValueError(f"type {kind}")


def _write(kind: int, value: Any) -> bytes:
    if kind in (I16, I32, I64):
        return _varint(value << 1 if value >= 0 else ((-value) << 1) - 1)
    if kind == BYTE or kind in (TRUE, FALSE):
        return bytes([value])
    if kind == STRUCT:
        return write_struct(value)
    if kind == DOUBLE:
        return bytes(value)
    if kind == BINARY:
        return _varint(len(value)) + value
    element, values = value
    head = bytes([len(values) << 4 | element]) if len(values) < 15 else bytes([0xF0 | element]) + _varint(len(values))
    return head + b"".join(_write(element, one) for one in values)


def _unsigned(data: bytes | memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _zigzag(data: bytes | memoryview, at: int) -> tuple[int, int]:
    value, at = _unsigned(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
