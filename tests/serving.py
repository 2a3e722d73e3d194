"""A tiny slot and policy for tests of the socket: the policy writes its level into its actions."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from hotpolicy.runtime.errors import BadRequest
from hotpolicy.runtime.messages import CameraSpec, Joint, Observation, RobotSpec

SPEC = RobotSpec(
    joints=tuple(Joint(f"joint_{n}.pos", "deg", -100.0, 100.0) for n in range(6)),
    cameras=(CameraSpec("front", 48, 64),),
    rate_hz=10.0,
)
HORIZON = 8


def observation(value: int = 0, spec: RobotSpec = SPEC) -> Observation:
    images = {camera.name: np.full((camera.height, camera.width, 3), value, np.uint8) for camera in spec.cameras}
    return Observation(images=images, state=np.zeros(len(spec.joints), np.float32), task="touch the red cube")


class LevelPolicy:
    """Actions are filled with `level`; computing takes `delay_s`; a task of "fail" or "nan" does that."""

    spec = SPEC
    horizon = HORIZON

    def __init__(self, level: float = 1.0, delay_s: float = 0.0):
        self.level, self.delay_s = level, delay_s
        self.version, self.digest = f"v{level:g}", f"{int(level):064x}"
        self.batches: list[int] = []

    def check(self, observation: Observation) -> None:
        if set(observation.images) != {camera.name for camera in self.spec.cameras}:
            raise BadRequest("images: expected the camera front")
        if observation.state.shape != (len(self.spec.joints),) or observation.state.dtype != np.float32:
            raise BadRequest(f"state: expected float32 (6,), got {observation.state.dtype} {observation.state.shape}")

    def infer(self, observations: Sequence[Observation], noise: np.ndarray | None = None) -> np.ndarray:
        self.batches.append(len(observations))
        if self.delay_s:
            time.sleep(self.delay_s)
        if any(observation.task == "fail" for observation in observations):
            raise RuntimeError("the model broke\nin two lines")
        actions = np.full((len(observations), self.horizon, len(self.spec.joints)), self.level, np.float32)
        for row, observation in zip(actions, observations, strict=True):
            if observation.task == "nan":
                row[0, 0] = np.nan
            if observation.task == "echo":
                row[:] = observation.images["front"][0, 0, 0]
        return actions


class TinySlot:
    def __init__(self, live: Any):
        self.live, self.previous, self.staged = live, None, None
        self.lock = threading.Lock()
        self.faults: list[str] = []
        self.reloads = 0
        self.pinned: dict[tuple[str, int], Any] = {}

    def policy_for(self, session: str, boundary: str, episode: int) -> Any:
        with self.lock:
            if boundary == "chunk":
                return self.live
            return self.pinned.setdefault((session, episode), self.live)

    def report_batch(self, version: str, actions: np.ndarray, ms: float, waited_ms: float) -> None:
        assert np.isfinite(actions).all()
        assert ms >= 0
        assert waited_ms >= 0

    def reload(self) -> str:
        self.reloads += 1
        return str(self.live.version)

    def figures(self) -> dict[str, Any]:
        return {}

    def report_fault(self, version: str) -> None:
        self.faults.append(version)

    def forget(self, session: str) -> None:
        self.pinned = {key: policy for key, policy in self.pinned.items() if key[0] != session}

    def promote(self, policy: Any, held_s: float = 0.0) -> None:
        with self.lock:
            time.sleep(held_s)
            self.previous, self.live = self.live, policy


class TinyControl:
    def __init__(self, slot: TinySlot, delay_s: float = 0.0):
        self.slot, self.delay_s, self.handled = slot, delay_s, []  # type: ignore[var-annotated]

    def handle(self, message: dict[str, Any]) -> dict[str, Any]:
        self.handled.append(message)
        time.sleep(self.delay_s)
        if message["kind"] == "swap":
            self.slot.promote(LevelPolicy(float(message["version"])))
        if message["kind"] == "rollback":
            raise BadRequest("previous: there is none")
        if message["kind"] == "history":
            raise ZeroDivisionError("a bug")
        return {"live": self.slot.live.version}
