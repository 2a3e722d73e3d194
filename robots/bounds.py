"""How far and how fast an arm may be sent, and what becomes of it when actions stop coming. Data only; nothing is sent
from here: `limits.LimitedArm` keeps to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.messages import RobotSpec

TOOL_SPEED = 250.0  # mm/s; what ISO 10218-1 allows beside people (reduced speed), until the user raises it

Fallback = Literal["hold", "safe_pose", "release"]


@dataclass(frozen=True, slots=True)
class JointLimit:
    """How far one joint may be sent, in its own unit (deg or percent)."""

    low: float
    high: float
    max_step: float  # largest change of the goal from one action to the next
    max_lead: float | None = None  # largest distance of the goal from the present position; None: any
    lever: float = 0.0  # mm the tool moves at most per radian of this joint; 0: it does not move the tool

    def __post_init__(self) -> None:
        if not 0 <= self.lever < np.inf:
            raise ConfigError(f"limit: expected a lever of 0 or more, got {self.lever}")
        if not self.low < self.high:  # also refuses NaN
            raise ConfigError(f"limit: expected low below high, got {self.low} and {self.high}")
        if not np.isfinite([self.low, self.high, self.max_step]).all() or self.max_step <= 0:
            raise ConfigError(f"limit: expected finite numbers and a max_step above 0, got {self}")
        if self.max_lead is not None and not 0 < self.max_lead < np.inf:
            raise ConfigError(f"limit: expected a max_lead above 0, got {self.max_lead}")


@dataclass(frozen=True, slots=True)
class Limits:
    """Of all joints, in the order of the action vector."""

    joints: tuple[JointLimit, ...]
    watchdog_s: float = 0.5  # no accepted action for this long: hold
    tool_step: float = np.inf  # mm the tool may travel from one action to the next
    fallback: Fallback = "hold"  # what becomes of an arm that has held for `fallback_s`
    fallback_s: float = 10.0
    tick_s: float = 0.0  # least time between two steps to the safe pose, whoever asks for them
    safe_pose: tuple[float, ...] | None = None  # (joints,) where it goes then, and where it parks

    def __post_init__(self) -> None:
        if not 0 < self.watchdog_s < np.inf:
            raise ConfigError(f"watchdog_s: expected more than 0 s, got {self.watchdog_s}")
        if not self.tool_step > 0:
            raise ConfigError(f"tool_step: expected more than 0 mm, got {self.tool_step}")
        if self.fallback not in ("hold", "safe_pose", "release"):
            raise ConfigError(f"fallback: expected hold, safe_pose or release, got {self.fallback!r}")
        if not 0 <= self.tick_s < np.inf:
            raise ConfigError(f"tick_s: expected 0 s or more, got {self.tick_s}")
        if not 0 < self.fallback_s < np.inf:
            raise ConfigError(f"fallback_s: expected more than 0 s, got {self.fallback_s}")
        if self.fallback == "safe_pose" and self.safe_pose is None:
            raise ConfigError("fallback: expected a safe_pose to go to, there is none")
        if self.safe_pose is not None:
            _check_pose(self.safe_pose, self.joints)

    @classmethod
    def of(
        cls,
        spec: RobotSpec,
        max_step: float | Sequence[float],
        max_lead: float | None = None,
        watchdog_s: float = 0.5,
    ) -> Limits:
        """The ranges of `spec` with one `max_step` for all joints, or one each."""
        steps = [max_step] * len(spec.joints) if isinstance(max_step, float | int) else list(max_step)
        if len(steps) != len(spec.joints):
            raise ConfigError(f"max_step: expected {len(spec.joints)} numbers, got {len(steps)}")
        joints = tuple(
            JointLimit(joint.low, joint.high, step, max_lead) for joint, step in zip(spec.joints, steps, strict=True)
        )
        return cls(joints, watchdog_s)


def _check_pose(pose: Sequence[float], joints: Sequence[JointLimit]) -> None:
    if len(pose) != len(joints):
        raise ConfigError(f"safe_pose: expected {len(joints)} numbers, got {len(pose)}")
    for index, (value, joint) in enumerate(zip(pose, joints, strict=True)):
        if not joint.low <= value <= joint.high:  # also refuses NaN
            raise ConfigError(f"safe_pose: joint {index}: expected {joint.low:g}..{joint.high:g}, got {value}")
