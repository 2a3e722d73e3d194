"""The nouns everyone may import: what a robot shows, what it is asked to do, and what it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from hotpolicy.runtime.rtc import Schedule

Boundary = Literal["chunk", "episode"]  # when a session may move to a newly promoted policy version


@dataclass(frozen=True, slots=True)
class Joint:
    """One entry of the state and action vectors, with LeRobot's name for it."""

    name: str  # e.g. "shoulder_pan.pos"
    unit: str  # "deg" or "percent" (gripper opening); of imported policies also "rad", "fraction", "m"
    low: float  # in that unit
    high: float


@dataclass(frozen=True, slots=True)
class CameraSpec:
    name: str  # e.g. "front"
    height: int  # pixels
    width: int


@dataclass(frozen=True, slots=True)
class RobotSpec:
    """What a policy and a robot must agree on before anything moves."""

    joints: tuple[Joint, ...]
    cameras: tuple[CameraSpec, ...]
    rate_hz: float  # actions per second

    def to_dict(self) -> dict[str, Any]:
        return {
            "joints": [{"name": j.name, "unit": j.unit, "low": j.low, "high": j.high} for j in self.joints],
            "cameras": [{"name": c.name, "height": c.height, "width": c.width} for c in self.cameras],
            "rate_hz": self.rate_hz,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RobotSpec:
        """Raises KeyError or TypeError when a field is missing or not known; callers name the file."""
        return cls(
            joints=tuple(Joint(**joint) for joint in data["joints"]),
            cameras=tuple(CameraSpec(**camera) for camera in data["cameras"]),
            rate_hz=float(data["rate_hz"]),
        )


@dataclass(frozen=True, slots=True)
class Observation:
    """One moment of one robot."""

    images: Mapping[str, np.ndarray]  # camera name -> (height, width, 3) uint8 RGB
    state: np.ndarray  # (joints,) float32, units of the RobotSpec
    task: str  # the instruction, e.g. "touch the red cube"


@dataclass(frozen=True, slots=True)
class Step:
    """One tick of a control loop, as recorders and viewers get it: what was seen, wished and done."""

    observation: Observation
    requested: np.ndarray  # (joints,) float32, what the operator or the policy asked for, units of the RobotSpec
    action: np.ndarray  # (joints,) float32, what was sent to the motors after the limits
    version: str | None = None  # policy bundle that asked for it; None when a person or a script did
    intervention: bool = False  # a person had taken over from a policy


@dataclass(frozen=True, slots=True)
class Rtc:
    """Real-time chunking: what the robot goes on executing while its next chunk is computed, so that this one is made
    to carry on from it. The server has the chunk itself and knows it by its request."""

    previous: int  # request id of the chunk being executed
    executed: int  # index in it of the action that is next when the observation is taken
    delay: int  # actions expected to be executed from there before the answer is in use: kept as they are
    execution_horizon: int  # actions from there over which the hold on the new chunk ends
    schedule: Schedule = "exp"  # how it falls after `delay`
    max_weight: float = 2.0  # the strongest pull, in velocities per normalised unit; the paper has 5, LeRobot 10


@dataclass(frozen=True, slots=True)
class InferRequest:
    """An observation on its way to a policy, with what the scheduler needs to know."""

    id: int  # rises within a session; a reply with an older id is never taken for a newer one
    session: str  # one robot's run of one client
    observation: Observation
    observed_at: float  # client's monotonic clock, s; echoed, never compared with the server's
    deadline_ms: float  # budget from arrival at the server; past it the request is answered `expired`
    boundary: Boundary = "chunk"
    episode: int = 0  # a new number ends the old episode: its version may change, and its chunks hold nothing any more
    rtc: Rtc | None = None  # None: the chunk begins afresh


@dataclass(frozen=True, slots=True)
class ActionChunk:
    """A policy's answer: the next `horizon` actions, and who made them."""

    actions: np.ndarray  # (horizon, joints) float32, absolute targets, units of the RobotSpec
    rate_hz: float  # actions per second
    observed_at: float  # echoed from the request, s
    request_id: int
    version: str  # id of the policy bundle that computed it
    digest: str  # content digest of that bundle, hex
    timings_ms: Mapping[str, float] = field(default_factory=dict)  # "queue", "infer", "total" at the server
    guided: bool = False  # carries on from the chunk that the request's `rtc` names
