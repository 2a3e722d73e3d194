"""What the fields of a message mean: requests, chunks and errors to and from the maps that wire.py carries.

A field that is not known is left alone, so that a newer peer may say more; one that is known must be right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast, get_args

import numpy as np

from hotpolicy.runtime import wire
from hotpolicy.runtime.errors import BadReply, BadRequest, HotpolicyError, from_code
from hotpolicy.runtime.messages import ActionChunk, InferRequest, Observation, RobotSpec, Rtc
from hotpolicy.runtime.rtc import Schedule
from hotpolicy.runtime.wire import Message

BOUNDARIES = ("chunk", "episode")
SCHEDULES = get_args(Schedule)
MAX_WEIGHT = 100.0  # a pull so strong that no step of a flow makes sense of it, and one that is far from overflow
SESSION_LENGTH = 128  # characters
TASK_LENGTH = 2000
ERROR_LENGTH = 400
MAX_ID = 2**63 - 1


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server says of itself when greeted."""

    spec: RobotSpec
    horizon: int  # actions in a chunk
    version: str  # the live policy version
    digest: str
    state: str  # starting, warming, ready, draining or failed
    shared_memory: bool = False  # whether it reads pixels that a client lends
    jpeg: bool = False  # whether it decodes pictures


class Fields:
    """Reads the fields of one message; raises `fault` naming the field that is missing or wrong."""

    __slots__ = ("fault", "message")

    def __init__(self, message: Mapping[str, Any], fault: type[HotpolicyError]):
        self.message, self.fault = message, fault

    def integer(self, name: str) -> int:
        value = self.message.get(name)
        if type(value) is not int or not 0 <= value <= MAX_ID:
            raise self._wrong(name, "an integer from 0 to 2**63-1")
        return value

    def flag(self, name: str) -> bool:
        value = self.message.get(name)
        if type(value) is not bool:
            raise self._wrong(name, "true or false")
        return value

    def number(self, name: str) -> float:
        value = self.message.get(name)
        if type(value) is int or (type(value) is float and math.isfinite(value)):
            return float(value)
        raise self._wrong(name, "a finite number")

    def text(self, name: str, longest: int) -> str:
        value = self.message.get(name)
        if type(value) is not str or len(value) > longest:
            raise self._wrong(name, f"text of at most {longest} characters")
        return value

    def array(self, name: str) -> np.ndarray:
        value = self.message.get(name)
        if not isinstance(value, np.ndarray):
            raise self._wrong(name, "an array")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        value = self.message.get(name)
        if type(value) is not dict:
            raise self._wrong(name, "a map")
        return value

    def _wrong(self, name: str, expected: str) -> HotpolicyError:
        got = type(self.message[name]).__name__ if name in self.message else "nothing"
        if type(self.message.get(name)) in (int, float):
            got = str(self.message[name])[:40]
        return self.fault(f"{name}: expected {expected}, got {got}")


def message(kind: str, id: int | None, **fields: Any) -> Message:
    return {"v": wire.VERSION, "kind": kind, "id": id, **fields}


def from_request(request: InferRequest) -> Message:
    fields: Message = {
        "v": wire.VERSION,
        "kind": "infer",
        "id": request.id,
        "session": request.session,
        "observed_at": request.observed_at,
        "deadline_ms": request.deadline_ms,
        "boundary": request.boundary,
        "episode": request.episode,
        "task": request.observation.task,
        "state": request.observation.state,
        "images": dict(request.observation.images),
    }
    if request.rtc is not None:  # a server that does not know the field answers as ever
        fields["rtc"] = asdict(request.rtc)
    return fields


def to_request(message: Message) -> InferRequest:
    """Raises BadRequest naming the field. Whether the observation suits the policy is for the policy to check."""
    fields = Fields(message, BadRequest)
    boundary = fields.text("boundary", 16)
    if boundary not in BOUNDARIES:
        raise BadRequest(f"boundary: expected one of {', '.join(BOUNDARIES)}, got {boundary!a}")
    deadline_ms = fields.number("deadline_ms")
    if deadline_ms <= 0:
        raise BadRequest(f"deadline_ms: expected more than 0, got {deadline_ms:g}")
    images = fields.mapping("images")
    for camera, image in images.items():
        if not isinstance(image, np.ndarray):
            raise BadRequest(f"images.{camera[:40]!a}: expected an array, got {type(image).__name__}")
    return InferRequest(
        id=fields.integer("id"),
        session=fields.text("session", SESSION_LENGTH),
        observation=Observation(images=images, state=fields.array("state"), task=fields.text("task", TASK_LENGTH)),
        observed_at=fields.number("observed_at"),
        deadline_ms=deadline_ms,
        boundary="episode" if boundary == "episode" else "chunk",
        episode=fields.integer("episode"),
        rtc=_to_rtc(fields.mapping("rtc")) if "rtc" in message else None,
    )


def _to_rtc(message: Message) -> Rtc:
    """Raises BadRequest naming the field. Whether there is such a chunk is for the server to see."""
    fields = Fields({f"rtc.{name}": value for name, value in message.items()}, BadRequest)
    schedule = fields.text("rtc.schedule", 16)
    if schedule not in SCHEDULES:
        raise BadRequest(f"rtc.schedule: expected one of {', '.join(SCHEDULES)}, got {schedule!a}")
    max_weight = fields.number("rtc.max_weight")
    if not 0 < max_weight <= MAX_WEIGHT:
        raise BadRequest(f"rtc.max_weight: expected more than 0 and at most {MAX_WEIGHT:g}, got {max_weight:g}")
    return Rtc(
        previous=fields.integer("rtc.previous"),
        executed=fields.integer("rtc.executed"),
        delay=fields.integer("rtc.delay"),
        execution_horizon=fields.integer("rtc.execution_horizon"),
        schedule=cast(Schedule, schedule),
        max_weight=max_weight,
    )


def from_chunk(chunk: ActionChunk) -> Message:
    return {
        "v": wire.VERSION,
        "kind": "chunk",
        "id": chunk.request_id,
        "observed_at": chunk.observed_at,
        "rate_hz": chunk.rate_hz,
        "version": chunk.version,
        "digest": chunk.digest,
        "timings_ms": chunk.timings_ms,
        "actions": chunk.actions,
        "guided": chunk.guided,
    }


def to_chunk(message: Message) -> ActionChunk:
    """Raises BadReply naming the field; a chunk with a number that is not finite is one."""
    fields = Fields(message, BadReply)
    actions = fields.array("actions")
    if actions.dtype != np.float32 or actions.ndim != 2 or not actions.size:
        raise BadReply(f"actions: expected float32 (horizon, joints), got {actions.dtype} {actions.shape}")
    if not finite(actions):
        raise BadReply("actions: expected finite numbers")
    rate_hz = fields.number("rate_hz")
    if rate_hz <= 0:
        raise BadReply(f"rate_hz: expected more than 0, got {rate_hz:g}")
    timings = fields.mapping("timings_ms")
    return ActionChunk(
        actions=actions,
        rate_hz=rate_hz,
        observed_at=fields.number("observed_at"),
        request_id=fields.integer("id"),
        version=fields.text("version", 128),
        digest=fields.text("digest", 128),
        timings_ms=timings if _numbers(timings) else {name: Fields(timings, BadReply).number(name) for name in timings},
        guided=fields.flag("guided") if "guided" in message else False,
    )


def from_error(id: int | None, error: HotpolicyError) -> Message:
    return message("error", id, code=error.code, text=one_line(str(error)))


def to_error(message: Message) -> HotpolicyError:
    """The error a peer reports, as the class its code names; BadReply when the report itself is wrong."""
    fields = Fields(message, BadReply)
    try:
        return from_code(fields.text("code", 64), one_line(fields.text("text", 4 * ERROR_LENGTH)))
    except BadReply as error:
        return error


def to_info(message: Message) -> ServerInfo:
    """Raises BadReply naming the field."""
    fields = Fields(message, BadReply)
    try:
        spec = RobotSpec.from_dict(fields.mapping("spec"))
    except (KeyError, TypeError, ValueError) as error:
        raise BadReply(f"spec: expected joints, cameras and rate_hz, got {one_line(str(error))}") from error
    return ServerInfo(
        spec=spec,
        horizon=fields.integer("horizon"),
        version=fields.text("version", 128),
        digest=fields.text("digest", 128),
        state=fields.text("state", 16),
        shared_memory=message.get("shared_memory") is True,
        jpeg=message.get("jpeg") is True,
    )


def _numbers(fields: dict[str, Any]) -> bool:
    """Whether all are finite floats, as they are where our own server wrote them."""
    return set(map(type, fields.values())) <= {float} and math.isfinite(sum(fields.values()))


def finite(array: np.ndarray) -> bool:
    """Whether neither NaN nor infinity is in it: `isfinite(array).all()`, in a third of its time for a chunk's size."""
    return 0 not in np.isfinite(array).tobytes()


def one_line(text: str) -> str:
    """A text made fit for one line of a log or a reply."""
    return " ".join(text.split())[:ERROR_LENGTH]
