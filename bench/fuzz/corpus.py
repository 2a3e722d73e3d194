"""Right messages of every dialect, as frames: what the fuzzer begins with. Made by code, nothing is stored."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np
from numpy.lib import format as npy
from serving import SPEC, observation

from hotpolicy.runtime import envelope, pictures, wire
from hotpolicy.runtime.messages import InferRequest, Rtc

Frames = Sequence[bytes]
PICTURE = np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)
JOINTS = len(SPEC.joints)


def native() -> list[Frames]:
    rtc = Rtc(previous=3, executed=2, delay=1, execution_horizon=4)
    infer = envelope.from_request(InferRequest(1, "robot", observation(7), 0.5, 100.0, rtc=rtc))
    plain = envelope.from_request(InferRequest(2, "robot", observation(), 0.5, 100.0, "episode", 3))
    shown = {"v": 1, "kind": "infer", **plain, "images": pictures.pack({"front": PICTURE}, {"front": 80})}
    lent = {**plain, "images": {"front": {"$a": ["|u1", [48, 64, 3], ["ring", 0]]}}}
    lent["ring"] = {"pid": 1, "fd": 3, "name": f"hotpolicy-ring-{'0' * 32}", "slot": 0, "generation": 1}
    others = [envelope.message(kind, 9) for kind in ("hello", "ping", "stats")]
    others += [envelope.message(kind, 9, session="robot") for kind in ("cancel", "bye")]
    inline = {**plain, "images": {"front": PICTURE[:4, :4]}, "state": np.zeros(JOINTS, np.float32)}
    return [[bytes(frame) for frame in wire.encode(m)] for m in (infer, plain, shown, lent, inline, *others)]


def control() -> list[Frames]:
    asked: list[dict[str, Any]] = [
        {"kind": kind, "request_id": f"request-{kind}", "version": version, "by": "operator"}
        for kind in ("stage", "swap", "promote", "rollback")
        for version in ("v2", "previous", "/tmp/a/bundle")
    ]
    asked += [{"kind": kind} for kind in ("ping", "versions", "status")] + [{"kind": "history", "limit": 10}]
    return [[bytes(frame) for frame in wire.encode({"v": 1, "id": 4, **message})] for message in asked]


def gr00t() -> list[Frames]:
    flat = {
        "video.front": PICTURE[None],
        "state.joints": np.zeros((1, JOINTS)),
        "annotation.human.action.task_description": ["lift"],
    }
    nested = {
        "observation": {
            "video": {"front": PICTURE[None, None]},
            "state": {"joints": np.zeros((1, 1, JOINTS), np.float32)},
            "language": {"task": [["lift"]]},
        },
        "options": None,
    }
    calls: list[dict[str, Any]] = [{"endpoint": "get_action", "data": data} for data in (flat, nested)]
    calls += [{"endpoint": name} for name in ("ping", "get_modality_config", "kill")]
    calls += [{"endpoint": "reset", "data": {"options": None}, "api_token": "secret"}]
    return [[b"", bytes(msgpack.packb(call, default=pack))] for call in calls for pack in (_npy, _raw)]


def openpi() -> list[Frames]:
    seen = {"observation/front": PICTURE, "observation/state": np.zeros(JOINTS), "prompt": "lift"}
    nested = {"observation": {"front": PICTURE, "state": np.zeros(JOINTS)}, "prompt": np.asarray("lift")}
    return [[bytes(msgpack.packb(value, default=pack_openpi))] for value in (seen, nested)]


def _npy(array: np.ndarray) -> dict[str, Any]:
    file = io.BytesIO()
    npy.write_array_header_1_0(file, npy.header_data_from_array_1_0(array))
    file.write(array.tobytes())
    return {"__ndarray_class__": True, "as_npy": file.getvalue()}


def _raw(array: np.ndarray) -> dict[bytes, Any]:
    return {b"nd": True, b"type": array.dtype.str, b"kind": b"", b"shape": array.shape, b"data": array.tobytes()}


def pack_openpi(array: np.ndarray) -> dict[bytes, Any]:
    return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": array.shape}


CORPUS = {"native": native, "control": control, "gr00t": gr00t, "openpi": openpi}
