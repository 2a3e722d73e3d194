"""Reading the msgpack of other runtimes' clients, within the caps of our own wire.

Their messages are one frame, pixels and all, so the cap on a header says nothing here. What a message may become in
memory is bounded by the number of values in its maps and lists instead.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgpack
import numpy as np

from hotpolicy.runtime import wire
from hotpolicy.runtime.errors import BadRequest
from hotpolicy.runtime.wire import Buffer, Caps, Path

VALUES = 65_536  # in all maps and lists of one message
KEY_LENGTH = 256  # characters or bytes

# What their clients may name: our wire's own, in either byte order. No object, string, complex or time dtype.
DTYPES = {swapped.str: swapped for dtype in wire.DTYPES.values() for swapped in (dtype, dtype.newbyteorder(">"))}


def unpack(body: Buffer, caps: Caps) -> Any:
    """One msgpack value, its arrays still as stand-ins. Raises BadRequest and nothing else, whatever the bytes."""
    if len(body) > caps.message_bytes:
        raise BadRequest(f"message: expected at most {caps.message_bytes} bytes, got {len(body)}")
    budget = _Budget()
    try:
        return msgpack.unpackb(
            body,
            object_hook=budget.spend_on_map,
            list_hook=budget.spend,
            max_map_len=caps.map_length,
            max_array_len=caps.list_length,
            max_str_len=caps.header_bytes,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise BadRequest(f"message: expected msgpack, got {len(body)} bytes that are not") from error


class _Budget:
    def __init__(self) -> None:
        self.left = VALUES

    def spend(self, value: Any) -> Any:
        self.left -= len(value) + 1
        if self.left < 0:
            raise BadRequest(f"message: expected at most {VALUES} values")
        return value

    def spend_on_map(self, value: Any) -> Any:
        if max(map(len, value), default=0) > KEY_LENGTH:  # unpackb lets no key but text and bytes through
            raise BadRequest(f"message: expected keys of at most {KEY_LENGTH} characters")
        return self.spend(value)


class Reader(wire.Reader):
    """Puts arrays for one dialect's stand-ins; a subclass says which maps those are."""

    __slots__ = ()
    marks: ClassVar[frozenset[str | bytes]] = frozenset()

    def __init__(self, caps: Caps):
        super().__init__((b"",), caps, BadRequest)

    def dtype(self, name: object, path: Path) -> np.dtype[Any]:
        found = DTYPES.get(name) if type(name) is str else None
        if found is None:
            raise self.wrong(path, "an array of booleans, integers or floats")
        return found

    def scalar(self, name: object, data: object, path: Path) -> Any:
        """A number that was a numpy scalar at the sender: as a plain number."""
        if type(data) is not bytes:
            raise self.wrong(path, f"bytes, got {type(data).__name__}")
        return self.array(self.dtype(name, path), [], data, path).item()
