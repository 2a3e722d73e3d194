"""The values of a header, each one checked: arrays for their stand-ins, or a fault that names the field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from hotpolicy.runtime.arrays import ARRAY, DTYPES, ENCODINGS, RING, SCALARS, Buffer, Encoded, Loan
from hotpolicy.runtime.caps import Caps
from hotpolicy.runtime.errors import HotpolicyError

PIXEL = DTYPES["|u1"]
Path = tuple[Any, ...]  # (the path of the map or list it is in, its key or index there); () for the header


class Reader:
    """Walks a header in place: arrays for their stand-ins, and no value of a kind or depth we did not ask for.

    A reader of another dialect has `marks` and a `stand_in` of its own.
    A path is only spelled out for a fault: on the way it is a chain of tuples, which cost nothing.
    """

    __slots__ = ("borrow", "caps", "fault", "frames", "loan", "unread")
    marks: ClassVar[frozenset[str | bytes]] = frozenset((ARRAY,))  # keys that make a map the stand-in of an array

    def __init__(
        self,
        frames: Sequence[Buffer],
        caps: Caps,
        fault: type[HotpolicyError],
        borrow: Callable[[], Loan] | None = None,
    ):
        self.frames, self.caps, self.fault = frames, caps, fault
        self.borrow = borrow
        self.loan: Loan | None = None
        self.unread = set(range(1, len(frames)))

    def walk(self, value: Any, path: Path, depth: int) -> Any:
        if depth > self.caps.depth:
            raise self.wrong(path, f"at most {self.caps.depth} levels")
        if type(value) is dict:
            if not self.marks.isdisjoint(value):
                return self.stand_in(value, path)
            for key, item in value.items():
                if type(key) is not str:
                    raise self.wrong(path, f"text as keys, got {type(key).__name__}")
                if type(item) not in SCALARS:
                    value[key] = self.walk(item, (path, key), depth + 1)
        elif type(value) is list:
            for index, item in enumerate(value):
                if type(item) not in SCALARS:
                    value[index] = self.walk(item, (path, index), depth + 1)
        else:  # a msgpack extension type
            raise self.wrong(path, f"plain msgpack, got {type(value).__name__}")
        return value

    def stand_in(self, value: dict[Any, Any], path: Path) -> Any:
        spec = value[ARRAY]
        if len(value) != 1 or type(spec) is not list or len(spec) != 3:
            raise self.wrong(path, "an array as [dtype, shape, place]")
        name, shape, place = spec
        dtype = DTYPES.get(name) if type(name) is str else None
        if type(place) is list:
            return self._lent(name, shape, place, path)
        if dtype is None and name in ENCODINGS:
            self._size(shape, path)
            return Encoded(name, tuple(shape), place if type(place) is bytes else self._frame(place, path))
        if dtype is None:
            raise self.wrong(path, f"a dtype among {', '.join(DTYPES)}, got {short(name)}")
        return self.array(dtype, shape, place if type(place) is bytes else self._frame(place, path), path)

    def _lent(self, name: object, shape: Any, place: list[Any], path: Path) -> np.ndarray:
        """Pixels only: of other numbers more would have to be checked, and the sender can change them after that."""
        if self.borrow is None:
            raise self.wrong(path, "the number of an array's own frame: shared memory is for ipc endpoints")
        if len(place) != 2 or place[0] != RING or type(place[1]) is not int or place[1] < 0:
            raise self.wrong(path, f"a place as [{RING!r}, offset]")
        if name != "|u1":
            raise self.wrong(path, f"|u1 in a ring, got {short(name)}")
        if self.loan is None:
            self.loan = self.borrow()
        size, offset, pixels = self._size(shape, path), place[1], self.loan.pixels
        if offset + size > len(pixels):
            raise self.wrong(path, f"{size} bytes at {offset} inside a slot of {len(pixels)}")
        if not size:
            return self.array(PIXEL, shape, b"", path)
        return np.ndarray(shape, PIXEL, pixels, offset)  # read-only, as the loan is

    def array(self, dtype: np.dtype[Any], shape: Any, data: Buffer, path: Path) -> np.ndarray:
        """A read-only view of `data` (C order), copied only where it is not aligned."""
        expected = self._size(shape, path) * dtype.itemsize
        if expected != len(data):
            raise self.wrong(path, f"{expected} bytes for {dtype.str} {short(shape)}, got {len(data)}")
        try:
            array = np.ndarray(shape, dtype, data) if expected else np.empty(shape, dtype)
        except ValueError as error:  # sizes beside a zero that numpy cannot hold
            raise self.wrong(path, f"a shape, got {short(shape)}") from error
        if dtype.kind == "b" and expected and array.view(np.uint8).max() > 1:
            raise self.wrong(path, "bytes 0 and 1 in a boolean array")
        if dtype.itemsize > 1 and not array.flags.aligned:  # a frame may start anywhere in libzmq's receive buffer
            array = array.copy()
        array.setflags(write=False)
        return array

    def _size(self, shape: object, path: Path) -> int:
        size = 1
        if type(shape) is list and len(shape) <= self.caps.ndim:
            for length in shape:
                if type(length) is not int or length < 0:
                    break
                size *= length
            else:
                return size
        raise self.wrong(path, f"a shape of at most {self.caps.ndim} sizes, got {short(shape)}")

    def _frame(self, place: object, path: Path) -> Buffer:
        if type(place) is not int or place not in self.unread:
            raise self.wrong(path, f"the number of an array's own frame, got {short(place)}")
        self.unread.discard(place)
        return self.frames[place]

    def wrong(self, path: Path, expected: str) -> HotpolicyError:
        keys: list[str] = []
        while path:
            path, key = path
            keys.append(f"[{key}]" if type(key) is int else f".{short(key)}")
        return self.fault(f"{''.join(reversed(keys)).lstrip('.')[:80] or 'header'}: expected {expected}")


def short(value: object) -> str:
    """A peer's value, safe to print on one line."""
    if isinstance(value, str):
        return ascii(value[:40])[1:-1]
    if isinstance(value, list):
        return ascii([n if type(n) in (int, float) else type(n).__name__ for n in value[:8]])
    return ascii(value)[:60] if type(value) in (int, float, bool, type(None)) else type(value).__name__
