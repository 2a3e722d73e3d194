"""Messages as ZeroMQ frames: a msgpack header, then the large arrays as raw frames behind it.

Frame 0 is a msgpack map {"v": 1, "kind": ..., "id": ..., ...}. An array anywhere in it stands as
{"$a": [dtype, shape, place]}: `place` is the number of the frame with its bytes (C order, little endian), or the bytes
themselves when they are few, or ["ring", offset] when they lie in memory that the sender lent (see ring.py). A picture
may also travel encoded, with the encoding's name in the place of the dtype. This file knows no sockets and no robots;
what the fields mean is envelope.py's business.

Rule 1: nothing is built from a peer's bytes before its size has been checked.
Rule 2: whatever the bytes, decoding ends in a message or in one fault that names the field.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import msgpack
import numpy as np

from hotpolicy.runtime.errors import BadRequest, HotpolicyError

VERSION = 1
INLINE_BYTES = 4096  # up to here an array rides in the header: a frame of its own costs more than the copy
ARRAY = "$a"
RING = "ring"  # in an array's place, and the header's field that says which ring and slot
ENCODINGS = ("jpeg",)

# Booleans, integers and floats; no object, string or time dtype can be named on this wire.
DTYPES = {
    name: np.dtype(name)
    for name in ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")
}
_PIXEL = DTYPES["|u1"]
_unpackb = msgpack.unpackb
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_SCALARS = frozenset((type(None), bool, int, float, str, bytes))

Message = dict[str, Any]
Buffer = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Caps:
    """The most a peer may send in one message."""

    message_bytes: int = 64 << 20  # all frames together
    header_bytes: int = 1 << 20
    frames: int = 17  # the header and sixteen arrays
    ndim: int = 6
    depth: int = 8  # maps and lists inside one another
    map_length: int = 256
    list_length: int = 4096


CAPS = Caps()
COMMAND_CAPS = Caps(message_bytes=1 << 20, frames=1)  # of an operator, who sends no arrays


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


Lender = Callable[[Message], Loan]  # the slot a message refers to; raises `fault` naming the field


class _Encoder(threading.local):
    """One per thread: the packer's buffer is kept from message to message."""

    def __init__(self) -> None:
        self.frames: list[Buffer] = []
        self.packer = msgpack.Packer(default=self._stand_in)

    def _stand_in(self, value: object) -> object:
        if isinstance(value, np.ndarray):
            name = _NAMES.get(value.dtype)
            if name is None:
                value, name = _little_endian(value)
            if value.nbytes <= INLINE_BYTES:
                return {ARRAY: (name, value.shape, value.tobytes())}
            self.frames.append(np.ascontiguousarray(value).data.cast("B"))
            return {ARRAY: (name, value.shape, len(self.frames) - 1)}
        if isinstance(value, Lent):
            return {ARRAY: ("|u1", value.shape, (RING, value.offset))}
        if isinstance(value, Encoded):
            self.frames.append(value.data)
            return {ARRAY: (value.encoding, value.shape, len(self.frames) - 1)}
        if isinstance(value, np.generic) and value.dtype in _NAMES:
            return value.item()
        raise BadRequest(f"message: expected numbers, text, maps, lists and arrays, got {type(value).__name__}")


_encoder = _Encoder()


def _little_endian(array: np.ndarray) -> tuple[np.ndarray, str]:
    dtype = array.dtype.newbyteorder("<")
    if dtype not in _NAMES:
        raise BadRequest(f"array: expected a dtype among {', '.join(DTYPES)}, got {array.dtype}")
    return array.astype(dtype), _NAMES[dtype]


def encode(message: Message) -> list[Buffer]:
    """The frames of a message. Large arrays are not copied: leave them unchanged until the message is answered.

    Raises BadRequest when a value has no place on this wire (an object array, a date, an integer beyond 64 bits).
    """
    frames = _encoder.frames = [b""]
    try:
        frames[0] = _encoder.packer.pack(message)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRequest(f"message: {error}") from error
    return frames


def decode(
    frames: Sequence[Buffer],
    caps: Caps = CAPS,
    fault: type[HotpolicyError] = BadRequest,
    lender: Lender | None = None,
) -> Message:
    """The message in these frames; its large arrays are read-only views of them, or of the slot that `lender` finds,
    and then the field `ring` holds that loan. Without a lender no array may lie in a ring.

    Raises `fault` (BadRequest at a server, BadReply at a client) and nothing else, whatever the bytes.
    """
    header = _header(frames, caps, fault)
    if header.get("v") != VERSION:
        raise fault(f"v: expected {VERSION}, got {_short(header.get('v'))}")
    reader = Reader(frames, caps, fault, lender and partial(lender, header))
    reader.walk(header, (), 1)
    if reader.loan:
        header[RING] = reader.loan
    if reader.unread:
        raise fault(f"frames: expected each to belong to one array, but {len(reader.unread)} belong to none")
    return header


def peek_id(frames: Sequence[Buffer], caps: Caps = CAPS) -> int | None:
    """The id of a message that may not decode, so that its sender can be told; None when not even that is readable."""
    try:
        found = _header(frames, caps, BadRequest).get("id")
    except BadRequest:
        return None
    return found if type(found) is int else None


def _header(frames: Sequence[Buffer], caps: Caps, fault: type[HotpolicyError]) -> Message:
    if not 1 <= len(frames) <= caps.frames:
        raise fault(f"frames: expected 1 to {caps.frames}, got {len(frames)}")
    first = frames[0]
    if len(frames) > 1 and (total := sum(map(len, frames))) > caps.message_bytes:
        raise fault(f"message: expected at most {caps.message_bytes} bytes, got {total}")
    if len(first) > caps.header_bytes:
        raise fault(f"header: expected at most {caps.header_bytes} bytes, got {len(first)}")
    try:
        header = _unpackb(
            first,
            max_map_len=caps.map_length,
            max_array_len=caps.list_length,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise fault(f"header: expected a msgpack map, got {len(first)} bytes that are not one") from error
    if type(header) is not dict:
        raise fault(f"header: expected a msgpack map, got {type(header).__name__}")
    return header


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
                if type(item) not in _SCALARS:
                    value[key] = self.walk(item, (path, key), depth + 1)
        elif type(value) is list:
            for index, item in enumerate(value):
                if type(item) not in _SCALARS:
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
            raise self.wrong(path, f"a dtype among {', '.join(DTYPES)}, got {_short(name)}")
        return self.array(dtype, shape, place if type(place) is bytes else self._frame(place, path), path)

    def _lent(self, name: object, shape: Any, place: list[Any], path: Path) -> np.ndarray:
        """Pixels only: of other numbers more would have to be checked, and the sender can change them after that."""
        if self.borrow is None:
            raise self.wrong(path, "the number of an array's own frame: shared memory is for ipc endpoints")
        if len(place) != 2 or place[0] != RING or type(place[1]) is not int or place[1] < 0:
            raise self.wrong(path, f"a place as [{RING!r}, offset]")
        if name != "|u1":
            raise self.wrong(path, f"|u1 in a ring, got {_short(name)}")
        if self.loan is None:
            self.loan = self.borrow()
        size, offset, pixels = self._size(shape, path), place[1], self.loan.pixels
        if offset + size > len(pixels):
            raise self.wrong(path, f"{size} bytes at {offset} inside a slot of {len(pixels)}")
        if not size:
            return self.array(_PIXEL, shape, b"", path)
        return np.ndarray(shape, _PIXEL, pixels, offset)  # read-only, as the loan is

    def array(self, dtype: np.dtype[Any], shape: Any, data: Buffer, path: Path) -> np.ndarray:
        """A read-only view of `data` (C order), copied only where it is not aligned."""
        expected = self._size(shape, path) * dtype.itemsize
        if expected != len(data):
            raise self.wrong(path, f"{expected} bytes for {dtype.str} {_short(shape)}, got {len(data)}")
        try:
            array = np.ndarray(shape, dtype, data) if expected else np.empty(shape, dtype)
        except ValueError as error:  # sizes beside a zero that numpy cannot hold
            raise self.wrong(path, f"a shape, got {_short(shape)}") from error
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
        raise self.wrong(path, f"a shape of at most {self.caps.ndim} sizes, got {_short(shape)}")

    def _frame(self, place: object, path: Path) -> Buffer:
        if type(place) is not int or place not in self.unread:
            raise self.wrong(path, f"the number of an array's own frame, got {_short(place)}")
        self.unread.discard(place)
        return self.frames[place]

    def wrong(self, path: Path, expected: str) -> HotpolicyError:
        keys: list[str] = []
        while path:
            path, key = path
            keys.append(f"[{key}]" if type(key) is int else f".{_short(key)}")
        return self.fault(f"{''.join(reversed(keys)).lstrip('.')[:80] or 'header'}: expected {expected}")


def _short(value: object) -> str:
    """A peer's value, safe to print on one line."""
    if isinstance(value, str):
        return ascii(value[:40])[1:-1]
    if isinstance(value, list):
        return ascii([n if type(n) in (int, float) else type(n).__name__ for n in value[:8]])
    return ascii(value)[:60] if type(value) in (int, float, bool, type(None)) else type(value).__name__
