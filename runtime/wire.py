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
from functools import partial
from typing import Any

import msgpack
import numpy as np

from hotpolicy.runtime.arrays import ARRAY, DTYPES, ENCODINGS, NAMES, RING, Buffer, Encoded, Lent, Loan
from hotpolicy.runtime.caps import CAPS, COMMAND_CAPS, Caps
from hotpolicy.runtime.errors import BadRequest, HotpolicyError
from hotpolicy.runtime.quick_reader import QuickReader
from hotpolicy.runtime.reader import Path, Reader, short

__all__ = [
    "ARRAY",
    "CAPS",
    "COMMAND_CAPS",
    "DTYPES",
    "ENCODINGS",
    "INLINE_BYTES",
    "RING",
    "VERSION",
    "Buffer",
    "Caps",
    "Encoded",
    "Lender",
    "Lent",
    "Loan",
    "Message",
    "Path",
    "Reader",
    "decode",
    "encode",
    "peek_id",
]

VERSION = 1
INLINE_BYTES = 4096  # up to here an array rides in the header: a frame of its own costs more than the copy

Message = dict[str, Any]
Lender = Callable[[Message], Loan]  # the slot a message refers to; raises `fault` naming the field
_unpackb = msgpack.unpackb


class _Encoder(threading.local):
    """One per thread: the packer's buffer is kept from message to message."""

    def __init__(self) -> None:
        self.frames: list[Buffer] = []
        self.packer = msgpack.Packer(default=self._stand_in)

    def _stand_in(self, value: object) -> object:
        if isinstance(value, np.ndarray):
            name = NAMES.get(value.dtype)
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
        if isinstance(value, np.generic) and value.dtype in NAMES:
            return value.item()
        raise BadRequest(f"message: expected numbers, text, maps, lists and arrays, got {type(value).__name__}")


_encoder = _Encoder()


def _little_endian(array: np.ndarray) -> tuple[np.ndarray, str]:
    dtype = array.dtype.newbyteorder("<")
    if dtype not in NAMES:
        raise BadRequest(f"array: expected a dtype among {', '.join(DTYPES)}, got {array.dtype}")
    return array.astype(dtype), NAMES[dtype]


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
        raise fault(f"v: expected {VERSION}, got {short(header.get('v'))}")
    quick = QuickReader(frames, caps, lender and partial(lender, header))
    if quick.read(header):
        if quick.loan:
            header[RING] = quick.loan
        return header
    header = _header(frames, caps, fault)
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
