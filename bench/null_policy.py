"""A policy that computes nothing, for benchmarks of everything else, and what it is asked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from hotpolicy.runtime.messages import CameraSpec, Joint, Observation, RobotSpec

HORIZON, JOINTS = 50, 7
SIZES = {"S": [("front", 224, 224)], "L": [(name, 480, 640) for name in ("front", "left", "right")]}
OBSERVATIONS = 8  # different ones, in turn, so that no cache flatters anybody


def robot(size: str) -> RobotSpec:
    joints = tuple(Joint(f"joint_{n}.pos", "deg", -180.0, 180.0) for n in range(JOINTS))
    return RobotSpec(joints, tuple(CameraSpec(*camera) for camera in SIZES[size]), rate_hz=50.0)


def observations(size: str) -> list[Observation]:
    random = np.random.default_rng(os.getpid())
    shapes = {name: (height, width, 3) for name, height, width in SIZES[size]}
    return [
        Observation(
            images={name: random.integers(0, 256, shape, np.uint8) for name, shape in shapes.items()},
            state=random.standard_normal(JOINTS).astype(np.float32),
            task="pick up the red cube and put it into the box",
        )
        for _ in range(OBSERVATIONS)
    ]


def checksum(observation: Observation) -> float:
    """Exact in float32: from the first, middle and last byte of every image, weighted by camera. The policy
    computes it inside the time measured, so it is no more than it must be to tell observations and cameras apart."""
    total = 0
    for number, image in enumerate(observation.images.values(), 1):
        total += number * (image.item(0) + 256 * image.item(image.size // 2)) + 65536 * (image.item(-1) & 31)
    return float(total)


class NullPolicy:
    """Computes nothing but the checksum."""

    version, digest, horizon = "null", "0" * 64, HORIZON

    def __init__(self, size: str):
        self.spec = robot(size)

    def check(self, observation: Observation) -> None:
        pass

    def infer(self, observations: Sequence[Observation], noise: np.ndarray | None = None) -> np.ndarray:
        actions = np.zeros((len(observations), HORIZON, JOINTS), np.float32)
        for row, observation in zip(actions, observations, strict=True):
            row[0, 0] = checksum(observation)
        return actions


class NullSlot:
    previous = staged = None

    def __init__(self, size: str):
        self.live = NullPolicy(size)

    def policy_for(self, session: str, boundary: str, episode: int) -> NullPolicy:
        return self.live

    def report_latency(self, version: str, ms: float) -> None:
        pass

    def report_fault(self, version: str) -> None:
        raise RuntimeError("the null policy failed")

    def report_batch(self, version: str, actions: np.ndarray, ms: float, waited_ms: float) -> None:
        pass

    def reload(self) -> str:
        raise RuntimeError("the null policy crashed")

    def figures(self) -> dict[str, Any]:
        return {}

    def forget(self, session: str) -> None:
        pass


class NullControl:
    def handle(self, message: dict[str, Any]) -> dict[str, Any]:
        return {}
