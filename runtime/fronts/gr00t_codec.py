"""Isaac-GR00T's messages: one msgpack map each way, in two array dialects, in flat or nested envelopes. No sockets.

N1.5 asks with a flat map of arrays and is answered with one; N1.6 and N1.7 ask with {observation, options} and are
answered with [action, info]. N1.5 and N1.6 write an array as a .npy file, N1.7 as its bytes and shape. Nothing in a
message says which version wrote it, so it is told from what is in it.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import msgpack
import numpy as np

from hotpolicy.runtime.errors import BadRequest
from hotpolicy.runtime.fronts import foreign, npy_file
from hotpolicy.runtime.wire import Buffer, Caps, Path

Arrays = Literal["npy", "raw"]
Envelope = Literal["flat", "nested"]

_NPY = "__ndarray_class__"
_RAW = b"nd"
_CONFIG, _CONFIG_CLASS = "__ModalityConfig__", "__ModalityConfig_class__"


@dataclass(frozen=True, slots=True)
class Speech:
    """How a peer speaks, as far as its messages have shown it; the reply is in the same."""

    arrays: Arrays | None = None  # None: no array yet, answered as the newest do
    envelope: Envelope | None = None


@dataclass(frozen=True, slots=True)
class Call:
    endpoint: str
    data: Any  # None: nothing was sent with it
    token: str | None
    arrays: Arrays | None  # None: no array in it


@dataclass(frozen=True, slots=True)
class Modality:
    """What one kind of data consists of: their ModalityConfig."""

    delta_indices: tuple[int, ...]  # steps from now
    keys: tuple[str, ...]  # full names, e.g. "video.front"; of language as they are


class _Reader(foreign.Reader):
    __slots__ = ("arrays",)
    marks: ClassVar[frozenset[str | bytes]] = frozenset((_NPY, _RAW, "nd"))

    def __init__(self, caps: Caps):
        super().__init__(caps)
        self.arrays: Arrays | None = None

    def stand_in(self, value: dict[Any, Any], path: Path) -> Any:
        if _NPY in value:
            self.arrays = "npy"
            return self._npy(value.get("as_npy"), path)
        self.arrays = "raw"
        fields = {key.decode("latin-1") if type(key) is bytes else key: item for key, item in value.items()}
        if fields.get("kind"):  # b"O" is a pickle, b"V" a structure
            raise self.wrong(path, "an array of booleans, integers or floats")
        name, data = fields.get("type"), fields.get("data")
        if fields["nd"] is not True:
            return self.scalar(name, data, path)
        if type(data) is not bytes:
            raise self.wrong(path, f"bytes, got {type(data).__name__}")
        return self.array(self.dtype(name, path), fields.get("shape"), data, path)

    def _npy(self, file: object, path: Path) -> np.ndarray:
        found = npy_file.split(file) if type(file) is bytes else None
        if found is None:
            raise self.wrong(path, "a .npy file of booleans, integers or floats")
        if found.fortran:
            return self.array(self.dtype(found.dtype, path), found.shape[::-1], found.data, path).T
        return self.array(self.dtype(found.dtype, path), found.shape, found.data, path)


def decode(body: Buffer, caps: Caps) -> Call:
    """Raises BadRequest naming the field, and nothing else, whatever the bytes."""
    message = foreign.unpack(body, caps)
    if type(message) is not dict:
        raise BadRequest(f"message: expected a map, got {type(message).__name__}")
    reader = _Reader(caps)
    message = reader.walk(message, (), 1)
    if type(message) is not dict:
        raise BadRequest("message: expected a map, got an array")
    endpoint, token = message.get("endpoint", "get_action"), message.get("api_token")
    if type(endpoint) is not str or len(endpoint) > 128:
        raise BadRequest("endpoint: expected a short name")
    if token is not None and (type(token) is not str or len(token) > 4096):
        raise BadRequest("api_token: expected text")
    return Call(endpoint, message.get("data"), token, reader.arrays)


def encode(value: Any, speech: Speech) -> bytes:
    """A reply: plain values, arrays of numbers and Modality, in the peer's dialect."""
    packed: bytes = msgpack.packb(value, default=functools.partial(_stand_in, speech=speech))
    return packed


def _stand_in(value: object, speech: Speech) -> object:
    if isinstance(value, np.ndarray) and value.dtype.str in foreign.DTYPES:
        if speech.arrays == "npy":
            return {_NPY: True, "as_npy": npy_file.join(value)}
        return {
            _RAW: True,
            b"type": value.dtype.str,
            b"kind": b"",
            b"shape": value.shape,
            b"data": value.tobytes(),
        }
    if isinstance(value, Modality):
        return _modality(value, speech)
    raise TypeError(f"{type(value).__name__} has no place in a reply")


def _modality(value: Modality, speech: Speech) -> object:
    """N1.5 wants text and full names, N1.6 a map under the same mark, N1.7 a map under another. A peer that has not
    shown which it is gets both marks: each of the two later ones looks for its own."""
    if speech.envelope == "flat":
        config: dict[str, Any] = {"delta_indices": value.delta_indices, "modality_keys": value.keys}
        return {_CONFIG_CLASS: True, "as_json": json.dumps(config, separators=(",", ":"))}
    keys = [re.sub(r"^(video|state|action)\.", "", key) for key in value.keys]
    marks = {"npy": (_CONFIG_CLASS,), "raw": (_CONFIG,), None: (_CONFIG, _CONFIG_CLASS)}[speech.arrays]
    return {**dict.fromkeys(marks, True), "as_json": {"delta_indices": value.delta_indices, "modality_keys": keys}}
