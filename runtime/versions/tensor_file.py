"""A safetensors file as a lazy mapping: the header is checked against the file at once, a tensor is read when asked."""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from hotpolicy.runtime.errors import BundleError

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"), "BOOL": np.dtype("?"),
}  # fmt: skip
# The kernel is not to keep memory ready for copies of pages: nobody writes to weights. A file larger than memory maps.
_FLAGS = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000)
_LONGEST_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies."""

    dtype: str  # safetensors' name, e.g. "BF16"
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


class TensorFile(Mapping[str, np.ndarray]):
    """Tensor name -> an array over the mapped file; nothing is copied. bfloat16 is `ml_dtypes.bfloat16`. Pages are
    shared with whoever maps the file, and the kernel may drop them. One that is written to becomes a private copy,
    never the file's. The file may be replaced or removed meanwhile, but must not be made shorter in place.
    Raises BundleError when the file is truncated, longer than its header says, or no safetensors file."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                start, header = _header(path, file.read(8), file.read, size)
                mapped = mmap.mmap(file.fileno(), size, flags=_FLAGS, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError as error:
            raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
        header.pop("__metadata__", None)
        self.entries = {name: _entry(path, name, data, start) for name, data in header.items()}
        _check_layout(path, self.entries, start, size)
        self._bytes = np.frombuffer(mapped, np.uint8)  # holds the map open as long as one array lives

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        return self._bytes[entry.start : entry.end].view(DTYPES[entry.dtype]).reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class Renamed(Mapping[str, np.ndarray]):
    """The same tensors under other names: `names` maps the file's to ours. Still lazy."""

    def __init__(self, tensors: Mapping[str, np.ndarray], names: Mapping[str, str]):
        self._tensors, self._theirs = tensors, {ours: theirs for theirs, ours in names.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[self._theirs[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._theirs)

    def __len__(self) -> int:
        return len(self._theirs)


def _header(path: Path, prefix: bytes, read: Any, size: int) -> tuple[int, dict[str, Any]]:
    """-> where the tensors' bytes begin, and the header."""
    if len(prefix) < 8:
        raise BundleError(f"{path}: expected a safetensors file, got {size} bytes")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(_LONGEST_HEADER, size - 8):
        raise BundleError(f"{path}: expected a safetensors file; its header would be {length} bytes of {size}")
    try:
        header = json.loads(read(length))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: expected a safetensors file; its header is not JSON") from error
    if not isinstance(header, dict):
        raise BundleError(f"{path}: expected a safetensors file; its header is not a mapping")
    return 8 + length, header


def _entry(path: Path, name: str, data: object, start: int) -> Entry:
    try:
        dtype, shape, (begin, end) = data["dtype"], tuple(data["shape"]), data["data_offsets"]  # type: ignore[index]
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path}: tensor {name}: expected dtype, shape and data_offsets") from error
    if not whole:
        raise BundleError(f"{path}: tensor {name}: expected whole numbers for shape and data_offsets")
    if dtype not in DTYPES:
        raise BundleError(f"{path}: tensor {name}: dtype {dtype!r} is not known; expected BF16 or F32")
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != expected:
        raise BundleError(
            f"{path}: tensor {name}: {dtype} {shape} takes {expected} bytes, the header gives {end - begin}"
        )
    return Entry(dtype, shape, start + begin, start + end)


def _check_layout(path: Path, entries: Mapping[str, Entry], start: int, size: int) -> None:
    """Tensors lie one after the other and fill the file."""
    at, last = start, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != at:
            raise BundleError(f"{path}: tensor {name}: begins at byte {entry.start}, but {last} ends at {at}")
        at, last = entry.end, name
        if at > size:
            raise BundleError(f"{path}: truncated in tensor {name}: it ends at byte {at}, the file has {size}")
    if at != size:
        raise BundleError(f"{path}: {size - at} bytes more than its header accounts for")
