"""Writes a safetensors file one tensor at a time: the header first, then the bytes, digested on their way.

The format is 8 bytes of header length, a JSON header, and the tensors one after the other without gaps.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from hotpolicy.runtime import durable
from hotpolicy.runtime.digest import TensorDigest, blocks
from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.versions.manifest import TensorInfo

DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
ALIGNMENT = 64  # bytes, where the first tensor begins: a cache line
RESERVED = "__metadata__"  # the format's own key in the header


class Slot(NamedTuple):
    """What the header says of a tensor."""

    shape: tuple[int, ...]
    dtype: str  # safetensors' name
    itemsize: int  # bytes of one number

    @property
    def size(self) -> int:
        return prod(self.shape) * self.itemsize


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> dict[str, TensorInfo]:
    """Write a new file, wait until the disk has it, and return what is in it, in the order of `tensors`. Each tensor
    is asked for twice, for its shape and for its numbers, and held alone: a lazy mapping costs one tensor's memory.
    Raises BundleError naming a tensor that could not be loaded again: an unknown dtype, or NaN; OSError for a disk
    that does not take it."""
    slots = {name: _slot(name, tensors[name]) for name in tensors}
    # The widest numbers first, so that each tensor begins at a multiple of its own numbers' size.
    order = sorted(slots, key=lambda name: (-slots[name].itemsize, name))
    written = {}
    durable.require_room(path.parent, sum(slot.size for slot in slots.values()))
    with durable.naming(path), path.open("wb") as file:
        file.write(_header({name: slots[name] for name in order}))
        for name in order:
            written[name] = _write(file, name, slots[name], tensors[name])
        file.flush()
        os.fsync(file.fileno())
    return {name: written[name] for name in slots}


def _write(file: BinaryIO, name: str, slot: Slot, tensor: np.ndarray) -> TensorInfo:
    if (again := _slot(name, tensor)) != slot:
        raise BundleError(f"tensor {name}: was {slot.dtype} {slot.shape}, now it is {again.dtype} {again.shape}")
    array = np.asarray(tensor, order="C")
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    digest = TensorDigest(array.dtype)
    for block in blocks(array):
        file.write(block.data)
        digest.update(block)
    if not digest.finite:
        raise BundleError(f"seal: tensor {name}: holds NaN or infinity")
    return TensorInfo(slot.shape, slot.dtype, digest.hexdigest())


def _slot(name: str, tensor: np.ndarray) -> Slot:
    array = np.asarray(tensor)
    if array.dtype.name not in DTYPES:
        raise BundleError(f"tensor {name}: dtype {array.dtype} is not supported")
    if name == RESERVED:
        raise BundleError(f"tensor {name}: this name is the file format's own")
    return Slot(array.shape, DTYPES[array.dtype.name], array.dtype.itemsize)


def _header(slots: Mapping[str, Slot]) -> bytes:
    entries: dict[str, Any] = {RESERVED: {"format": "hotpolicy"}}
    at = 0
    for name, slot in slots.items():
        entries[name] = {"dtype": slot.dtype, "shape": list(slot.shape), "data_offsets": [at, at + slot.size]}
        at += slot.size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text
