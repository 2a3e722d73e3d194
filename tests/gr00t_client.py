"""GR00T's ZeroMQ client at the level of bytes, written from how the published ones pack their messages; none of ours.

Dialect A writes an array as a .npy file (N1.5, N1.6), dialect B as msgpack_numpy does (N1.7).
"""

from __future__ import annotations

import io
import json
from typing import Any

import msgpack
import numpy as np
import zmq


def pack_a(value: Any) -> bytes:
    def hook(array: np.ndarray) -> dict[str, Any]:
        file = io.BytesIO()
        np.save(file, array, allow_pickle=False)
        return {"__ndarray_class__": True, "as_npy": file.getvalue()}

    return bytes(msgpack.packb(value, default=hook))


def unpack_a(body: bytes) -> Any:
    """As N1.5 does; N1.6 only differs in what `as_json` holds. Never heard of dialect B."""

    def hook(value: dict[Any, Any]) -> Any:
        if "__ModalityConfig_class__" in value:
            config = value["as_json"]
            return ("config", json.loads(config) if isinstance(config, str) else config)
        if "__ndarray_class__" in value:
            return np.load(io.BytesIO(value["as_npy"]), allow_pickle=False)
        return value

    return msgpack.unpackb(body, object_hook=hook, strict_map_key=False)


def pack_b(value: Any) -> bytes:
    def hook(array: Any) -> dict[bytes, Any]:
        if isinstance(array, np.ndarray):
            return {
                b"nd": True,
                b"type": array.dtype.str,
                b"kind": b"",
                b"shape": array.shape,
                b"data": array.tobytes(),
            }
        return {b"nd": False, b"type": array.dtype.str, b"data": array.data.tobytes()}

    return bytes(msgpack.packb(value, default=hook))


def unpack_b(body: bytes) -> Any:
    """As N1.7 does, but for dialect A, so that an answer in it is noticed."""

    def hook(value: dict[Any, Any]) -> Any:
        if "__ModalityConfig__" in value:
            return ("config", value["as_json"])
        if b"nd" in value:
            return np.frombuffer(value[b"data"], value[b"type"]).reshape(value[b"shape"])
        return value

    return msgpack.unpackb(body, object_hook=hook, strict_map_key=False)


class Gr00tClient:
    """`dialect` "a" or "b". A REQ socket as theirs, or one that correlates and may give up on an answer."""

    def __init__(self, endpoint: str, dialect: str = "b", token: str | None = None, correlate: bool = False):
        self.pack, self.unpack = (pack_a, unpack_a) if dialect == "a" else (pack_b, unpack_b)
        self.token = token
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.REQ)
        if correlate:
            self.socket.set(zmq.REQ_RELAXED, 1)
            self.socket.set(zmq.REQ_CORRELATE, 1)
        self.socket.set(zmq.RCVTIMEO, 10_000)
        self.socket.set(zmq.LINGER, 0)
        self.socket.connect(endpoint)

    def call(self, endpoint: str, data: Any = None, requires_input: bool = True) -> Any:
        self.send(endpoint, data, requires_input)
        return self.receive()

    def send(self, endpoint: str, data: Any = None, requires_input: bool = True) -> None:
        request = {"endpoint": endpoint}
        if requires_input:
            request["data"] = data
        if self.token:
            request["api_token"] = self.token
        self.socket.send(self.pack(request))

    def receive(self) -> Any:
        reply = self.unpack(self.socket.recv())
        if isinstance(reply, dict) and "error" in reply:
            raise RuntimeError(f"Server error: {reply['error']}")
        return reply

    def close(self) -> None:
        self.socket.close()
        self._context.term()

    def __enter__(self) -> Gr00tClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
