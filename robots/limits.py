"""The only road to the motors: what is not a number is refused, what goes too far or too fast is cut, and when actions
stop coming the arm holds. Knows joints in the arm's units, and no bus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hotpolicy.robots.robot import Arm, ArmState
from hotpolicy.runtime import clock
from hotpolicy.runtime.errors import BusLost, ConfigError, LimitViolation, ServoSilent
from hotpolicy.runtime.messages import RobotSpec


@dataclass(frozen=True, slots=True)
class JointLimit:
    """How far one joint may be sent, in its own unit (deg or percent)."""

    low: float
    high: float
    max_step: float  # largest change of the goal from one action to the next
    max_lead: float | None = None  # largest distance of the goal from the present position; None: any

    def __post_init__(self) -> None:
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

    def __post_init__(self) -> None:
        if not 0 < self.watchdog_s < np.inf:
            raise ConfigError(f"watchdog_s: expected more than 0 s, got {self.watchdog_s}")

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


class LimitedArm:
    """An arm that cannot be sent anywhere its limits forbid. One thread drives it: read, send, watchdog, each tick.

    A goal's step is measured from the goal sent before it. After `hold` and `torque`, and at the start, that is where
    the joints are: the first action then starts from there.
    """

    def __init__(self, arm: Arm, limits: Limits, now: Callable[[], float] = clock.now):
        if len(limits.joints) != len(arm.spec.joints):
            raise ConfigError(f"limits: expected {len(arm.spec.joints)} joints, got {len(limits.joints)}")
        self.spec = arm.spec
        self.limits = limits
        self.holding = False  # the watchdog has stopped the arm, and no action was accepted since
        self._arm = arm
        self._now = now
        # Rounded inward, so that no float32 action can lie outside by its last bit.
        self._low = _inward([joint.low for joint in limits.joints], up=True)
        self._high = _inward([joint.high for joint in limits.joints], up=False)
        self._step = np.array([joint.max_step for joint in limits.joints])
        self._lead = np.array([np.inf if joint.max_lead is None else joint.max_lead for joint in limits.joints])
        self._goal: np.ndarray | None = None  # the last goal the servos were sent; None: not known
        self._present: np.ndarray | None = None  # as read since the last goal
        self._accepted_at: float | None = None

    def read(self) -> ArmState:
        try:
            state = self._arm.read()
        except BusLost:
            self._goal = self._present = None  # whatever is behind the port when it is back, it is not where it was
            raise
        self._present = np.asarray(state.positions, dtype=np.float64)
        return state

    def send(self, action: np.ndarray) -> np.ndarray:
        """Cut `action` ((joints,) absolute targets, deg or percent) to the limits, send it, and return what was sent
        ((joints,) float32).

        Raises LimitViolation, and sends nothing, for a wrong shape, for what is not a finite number, and when the arm
        refuses; ServoSilent when the goal would have to start from a position nobody knows.
        """
        wanted = self._checked(action)
        start, present = self._start()
        wanted = np.clip(wanted, present - self._lead, present + self._lead)
        wanted = np.clip(wanted, start - self._step, start + self._step)
        sent = np.clip(wanted.astype(np.float32), self._low, self._high)
        self._goal = self._present = None  # until the arm has taken the new goal, neither is sure
        self._arm.send(sent)
        self._goal = sent.astype(np.float64)
        self._accepted_at = self._now()
        self.holding = False
        return sent

    def watchdog(self) -> bool:
        """Hold when the last accepted action is too old; call every tick. True while the arm is held for that reason.

        Before the first action there is nothing to stop: the arm is where it was.
        """
        if not self.holding and self._accepted_at is not None:
            if self._now() - self._accepted_at <= self.limits.watchdog_s:
                return False
            self.hold()
            self.holding = True
        return self.holding

    def hold(self) -> None:
        """Stop where the arm is. Actions may be sent again at once, and start from there."""
        self._goal = self._present = None
        self._arm.hold()
        self._accepted_at = None  # only now: a watchdog whose hold failed tries again

    def torque(self, on: bool) -> None:
        """On takes the present position as goal; off lets the arm fall."""
        self._goal = self._present = None
        self._arm.torque(on)
        self._accepted_at = None

    def close(self) -> None:
        self._goal = self._present = self._accepted_at = None
        self._arm.close()

    def _start(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the next step starts, and where the arm is; reads the arm when either is needed and not known."""
        if self._goal is None:
            state = self.read()
            if state.stale:
                raise ServoSilent(f"joint {state.stale[0]}: expected a position to start from, the servo is silent")
            present = np.asarray(state.positions, dtype=np.float64)
            # Holding clamps to the range too, so this is the goal the servos have.
            return np.clip(present, self._low, self._high).astype(np.float64), present
        if self._present is None and np.isfinite(self._lead).any():
            self.read()
        return self._goal, self._goal if self._present is None else self._present

    def _checked(self, action: np.ndarray) -> np.ndarray:
        joints = len(self.spec.joints)
        try:
            array = np.asarray(action)
        except ValueError as error:
            raise LimitViolation(f"action: expected shape ({joints},), got ragged lists; nothing was sent") from error
        if array.shape != (joints,):
            raise LimitViolation(f"action: expected shape ({joints},), got {array.shape}; nothing was sent")
        if array.dtype.kind not in "fiu":
            raise LimitViolation(f"action: expected numbers, got {array.dtype}; nothing was sent")
        with np.errstate(over="ignore"):  # becomes infinite, and is refused as such
            wanted = array.astype(np.float64)
        for joint, value in zip(self.spec.joints, wanted, strict=True):
            if not np.isfinite(value):
                raise LimitViolation(f"action of {joint.name}: expected a finite number, got {value}; nothing was sent")
        return wanted


def _inward(bounds: Sequence[float], up: bool) -> np.ndarray:
    """The nearest float32 that is not outside of each bound."""
    exact = np.array(bounds, dtype=np.float64)
    rounded = exact.astype(np.float32)
    outside = rounded < exact if up else rounded > exact
    inward = np.nextafter(rounded, np.float32(np.inf if up else -np.inf))
    return np.where(outside, inward, rounded)
