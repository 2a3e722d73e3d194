"""Isaac-GR00T's messages: one msgpack map each way, in two array dialects, in flat or nested envelopes. No sockets.

N1.5 asks with a flat map of arrays and is answered with one; N1.6 and N1.7 ask with {observation, options} and are
answered with [action, info]. N1.5 and N1.6 write an array as a .npy file, N1.7 as its bytes and shape. Nothing in a
message says which version wrote it, so it is told from what is in it.
"""

from __future__ import annotations

import functools
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import msgpack
import numpy as np
from numpy.lib import format as npy

from hotpolicy.runtime.errors import BadRequest
from hotpolicy.runtime.fronts import foreign
from hotpolicy.runtime.wire import Buffer, Caps, Path

Arrays = Literal["npy", "raw"]
Envelope = Literal["flat", "nested"]

KINDS = ("video", "state", "language", "action")
_NPY = "__ndarray_class__"
_RAW = b"nd"
_CONFIG, _CONFIG_CLASS = "__ModalityConfig__", "__ModalityConfig_class__"
_NPY_MAGIC = b"\x93NUMPY"
_NPY_HEADER = re.compile(  # as numpy writes it; a file that says more than this is none of a robot's
    rb"\{'descr': '([<>|][biuf]\d{1,2})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,10}, ?)*\d{0,10})\), \} *\n"
)
_NPY_HEADER_BYTES = 512


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


@dataclass(frozen=True, slots=True)
class Asked:
    """What get_action was sent, in one shape whatever the envelope: the names of N1.5, one map per robot."""

    rows: tuple[dict[str, Any], ...]  # "video.x" -> one picture, "state.x" -> (D,), others -> text
    batched: bool  # whether the arrays had a batch axis, and the reply's therefore have one
    envelope: Envelope
    dotted: bool  # whether the parts were named "state.x", and the reply's therefore are "action.x"
    options: Mapping[str, Any]


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
        """Reads the header by itself: numpy's own reader would evaluate it first and judge it afterwards."""
        if type(file) is not bytes or file[:6] != _NPY_MAGIC or len(file) < 12 or file[6] not in (1, 2, 3):
            raise self.wrong(path, "a .npy file")
        begin = 10 if file[6] == 1 else 12
        length = int.from_bytes(file[8:begin], "little")
        header = _NPY_HEADER.fullmatch(file[begin : begin + min(length, _NPY_HEADER_BYTES)])
        if header is None:
            raise self.wrong(path, "a .npy file of booleans, integers or floats")
        dtype = self.dtype(header[1].decode(), path)
        shape = [int(size) for size in header[3].replace(b" ", b"").split(b",") if size]
        data = memoryview(file)[begin + length :]
        if header[2] == b"False":
            return self.array(dtype, shape, data, path)
        return self.array(dtype, shape[::-1], data, path).T


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


def asked(data: Any) -> Asked:
    """Raises BadRequest naming the key whose place, shape or batch is wrong."""
    values = _mapping(data, "data")
    envelope: Envelope = "nested" if type(values.get("observation")) is dict else "flat"
    options = values.get("options") if envelope == "nested" else None
    if envelope == "nested":
        values = _mapping(values["observation"], "observation")
    dotted = not any(type(values.get(kind)) is dict for kind in KINDS)
    flat = values if dotted else _flatten(values)
    batches = {key: batch for key, value in flat.items() if (batch := _batch(key, value)) is not None}
    sizes = {key: len(rows) for key, rows in batches.items()}
    if len(set(sizes.values())) > 1:
        raise BadRequest(f"observation: expected one batch size, got {', '.join(f'{k} {n}' for k, n in sizes.items())}")
    count = next(iter(sizes.values()), 1)
    rows = [{key: _row(key, value, batches.get(key), n, count) for key, value in flat.items()} for n in range(count)]
    return Asked(tuple(rows), bool(sizes), envelope, dotted, options if type(options) is dict else {})


def _flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for kind, parts in values.items():
        if kind not in KINDS:
            flat[kind] = parts
            continue
        for key, value in _mapping(parts, kind).items():
            flat[key if kind == "language" else f"{kind}.{key}"] = value
    return flat


def _mapping(value: Any, field: str) -> dict[str, Any]:
    if type(value) is not dict or len(value) > 64:
        raise BadRequest(f"{field}: expected a map of the observation's parts, got {type(value).__name__}")
    return value


def _dimensions(key: str) -> int | None:
    """How many axes one moment of this part has; None: it is no array."""
    return {"video": 3, "state": 1}.get(key.partition(".")[0])


def _batch(key: str, value: Any) -> np.ndarray | None:
    """A batch of one moment each (B, ...), where this part is one."""
    axes = _dimensions(key)
    if axes is None or not isinstance(value, np.ndarray) or value.ndim != axes + 2:
        return None
    if not 1 <= value.shape[0] <= 64:
        raise BadRequest(f"{key}: expected a batch of 1 to 64, got {value.shape}")
    return _moment(key, value, 1)


def _moment(key: str, value: np.ndarray, axis: int) -> np.ndarray:
    if value.shape[axis] != 1:
        raise BadRequest(f"{key}: expected one moment, got {value.shape[axis]} in {value.shape}")
    return value[:, 0] if axis else value[0]


def _row(key: str, value: Any, batch: np.ndarray | None, n: int, count: int) -> Any:
    """What part `key` is for robot `n` of the batch."""
    if batch is not None:
        return batch[n]
    if (axes := _dimensions(key)) is not None:
        one_moment = isinstance(value, np.ndarray) and value.ndim == axes + 1
        return _moment(key, value, 0) if one_moment else value
    while type(value) is list and value:  # a text per robot, each in a list of moments, or one for all
        value = value[n] if len(value) == count else value[0]
        n, count = 0, 1
    return value


def answer(parts: Sequence[Mapping[str, np.ndarray]], info: dict[str, Any], asked: Asked) -> Any:
    """The reply to get_action: each part (T, D) of each robot, named, batched and wrapped as it was asked for."""
    names = {key: key if asked.dotted else key.removeprefix("action.") for key in parts[0]}
    if asked.batched:
        action = {name: np.stack([row[key] for row in parts]) for key, name in names.items()}
    else:
        action = {name: parts[0][key] for key, name in names.items()}
    return [action, info] if asked.envelope == "nested" else action


def _stand_in(value: object, speech: Speech) -> object:
    if isinstance(value, np.ndarray) and value.dtype.str in foreign.DTYPES:
        if speech.arrays == "npy":
            return {_NPY: True, "as_npy": _npy_file(value)}
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


def _npy_file(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    fields = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    npy.write_array_header_1_0(file, fields)
    return file.getvalue() + array.tobytes()


def _modality(value: Modality, speech: Speech) -> object:
    """N1.5 wants text and full names, N1.6 a map under the same mark, N1.7 a map under another. A peer that has not
    shown which it is gets both marks: each of the two later ones looks for its own."""
    if speech.envelope == "flat":
        config: dict[str, Any] = {"delta_indices": value.delta_indices, "modality_keys": value.keys}
        return {_CONFIG_CLASS: True, "as_json": json.dumps(config, separators=(",", ":"))}
    keys = [re.sub(r"^(video|state|action)\.", "", key) for key in value.keys]
    marks = {"npy": (_CONFIG_CLASS,), "raw": (_CONFIG,), None: (_CONFIG, _CONFIG_CLASS)}[speech.arrays]
    return {**dict.fromkeys(marks, True), "as_json": {"delta_indices": value.delta_indices, "modality_keys": keys}}
