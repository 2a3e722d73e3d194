"""openpi's messages: msgpack maps in which an array is a map with keys of bytes. No sockets."""

from __future__ import annotations

from typing import Any, ClassVar

import msgpack
import numpy as np

from hotpolicy.runtime.errors import BadRequest
from hotpolicy.runtime.fronts import foreign
from hotpolicy.runtime.wire import Buffer, Caps, Path

_ARRAY, _SCALAR = b"__ndarray__", b"__npgeneric__"
TEXT_LENGTH = 2000  # characters of a text that came as an array


class _Reader(foreign.Reader):
    __slots__ = ()
    marks: ClassVar[frozenset[str | bytes]] = frozenset((_ARRAY, _SCALAR))

    def stand_in(self, value: dict[Any, Any], path: Path) -> Any:
        name, data = value.get(b"dtype"), value.get(b"data")
        if _SCALAR in value:
            if type(data) not in (bool, int, float, str):
                raise self.wrong(path, f"a number, got {type(data).__name__}")
            return data
        if type(data) is not bytes:
            raise self.wrong(path, f"bytes, got {type(data).__name__}")
        if type(name) is str and name[:2] == "<U" and value.get(b"shape") == []:
            return self._text(data, path)
        return self.array(self.dtype(name, path), value.get(b"shape"), data, path)

    def _text(self, data: bytes, path: Path) -> str:
        """Their packer lets np.asarray("a prompt") pass: 4 bytes for each character, zeros behind."""
        if len(data) <= 4 * TEXT_LENGTH and len(data) % 4 == 0:
            try:
                return data.decode("utf-32-le").rstrip("\0")
            except UnicodeDecodeError:
                pass
        raise self.wrong(path, f"a text of at most {TEXT_LENGTH} characters")


def decode(body: Buffer, caps: Caps) -> dict[str, Any]:
    """An observation, maps in it flattened: {"images": {"cam_high": ...}} -> {"images/cam_high": ...}.

    Raises BadRequest naming the key, and nothing else, whatever the bytes.
    """
    message = foreign.unpack(body, caps)
    if type(message) is dict:
        message = _Reader(caps).walk(message, (), 1)
    if type(message) is not dict:
        raise BadRequest(f"message: expected a map, got {type(message).__name__}")
    return dict(_leaves(message, ""))


def _leaves(values: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        found += _leaves(value, f"{prefix}{key}/") if type(value) is dict else [(prefix + key, value)]
    return found


def encode(value: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(value, default=_stand_in)
    return packed


def _stand_in(value: object) -> object:
    if isinstance(value, np.ndarray) and value.dtype.str in foreign.DTYPES:
        return {_ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    raise TypeError(f"{type(value).__name__} has no place in a reply")
