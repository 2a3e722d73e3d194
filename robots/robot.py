"""The contracts of the robot side: a robot, a camera, an operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from hotpolicy.runtime.messages import Observation, RobotSpec


@dataclass(frozen=True, slots=True)
class Frame:
    """A camera image and the moment it was captured."""

    image: np.ndarray  # (height, width, 3) uint8 RGB
    captured_at: float  # monotonic s


class Camera(Protocol):
    name: str

    def read(self) -> Frame: ...  # the newest frame; raises CameraLost when none is fresh

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ArmState:
    """What the joints answered in one bus cycle."""

    positions: np.ndarray  # (joints,) float32, deg or percent; the last known value where stale
    stale: tuple[str, ...]  # names of joints that did not answer this cycle
    faults: Mapping[str, tuple[str, ...]]  # joint -> decoded error bits, only where set
    read_at: float  # monotonic s


class Arm(Protocol):
    """Joints on a bus. Nothing but `limits.LimitedArm` may call `send`."""

    spec: RobotSpec

    def read(self) -> ArmState: ...

    def send(self, positions: np.ndarray) -> None: ...  # (joints,) absolute targets, deg or percent

    def hold(self) -> None: ...  # goal := present position

    def torque(self, on: bool) -> None: ...

    def close(self) -> None: ...


@runtime_checkable
class Reconnecting(Protocol):
    """An arm that can be found again after BusLost."""

    def reconnect(self) -> None: ...  # trusts nothing from before; raises as connecting does; torque stays as it is


class Operator(Protocol):
    """Produces the actions of a demonstration: a person with keys or a leader arm, or a script."""

    def act(self, observation: Observation) -> np.ndarray | None: ...  # (joints,) targets, or None: episode over

    def close(self) -> None: ...
