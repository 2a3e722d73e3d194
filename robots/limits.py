"""The only road to the motors: what is not a number is refused, what goes too far or too fast is cut, and when actions
stop coming the arm holds, and later goes to its safe pose or lets go, as it was told. An emergency stop ends all that.
Knows joints in the arm's units, and no bus."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from hotpolicy.robots.robot import Arm, ArmState, Reconnecting
from hotpolicy.runtime import clock
from hotpolicy.runtime.errors import (
    BusLost,
    ConfigError,
    LimitViolation,
    RobotError,
    ServoSilent,
    Stopped,
    StopUnconfirmed,
)
from hotpolicy.runtime.messages import RobotSpec

TOOL_SPEED = 250.0  # mm/s; what ISO 10218-1 allows beside people (reduced speed), until the user raises it
STOP_ATTEMPTS = 3  # to release the arm, each of them with the bus's own repetitions

Fallback = Literal["hold", "safe_pose", "release"]


class Latch(Protocol):
    """Keeps an emergency stop until a human clears it."""

    @property
    def reason(self) -> str | None: ...  # why the arm was stopped; None: it was not

    def set(self, reason: str) -> None: ...


class OpenLatch:
    """A latch that forgets when the program ends."""

    reason: str | None = None

    def set(self, reason: str) -> None:
        self.reason = reason


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


class LimitedArm:
    """An arm that cannot be sent anywhere its limits forbid. One thread drives it: read, send, watchdog, each tick;
    `stop` may be called from any thread.

    A goal's step is measured from the goal sent before it. After `hold` and `torque`, and at the start, that is where
    the joints are: the first action then starts from there.
    """

    def __init__(self, arm: Arm, limits: Limits, now: Callable[[], float] = clock.now, latch: Latch | None = None):
        if len(limits.joints) != len(arm.spec.joints):
            raise ConfigError(f"limits: expected {len(arm.spec.joints)} joints, got {len(limits.joints)}")
        self.spec = arm.spec
        self.limits = limits
        self.holding = False  # the watchdog has stopped the arm, and no action was accepted since
        self.latch: Latch = OpenLatch() if latch is None else latch
        self._arm = arm
        self._now = now
        self._turn = threading.RLock()  # between a goal and a stop: none is sent once the stop has begun
        # Rounded inward, so that no float32 action can lie outside by its last bit.
        self._low = _inward([joint.low for joint in limits.joints], up=True)
        self._high = _inward([joint.high for joint in limits.joints], up=False)
        self._step = np.array([joint.max_step for joint in limits.joints])
        self._lead = np.array([np.inf if joint.max_lead is None else joint.max_lead for joint in limits.joints])
        degrees = [joint.unit == "deg" for joint in arm.spec.joints]
        self._lever = np.where(degrees, np.radians([joint.lever for joint in limits.joints]), 0.0)  # mm per degree
        self._goal: np.ndarray | None = None  # the last goal the servos were sent; None: not known
        self._present: np.ndarray | None = None  # as read since the last goal
        self._accepted_at: float | None = None
        self._held_at = 0.0  # when waiting for actions began
        self._stepped_at = -np.inf  # when it last took a step to the safe pose
        self._carried = False
        self.rest_pose: np.ndarray | None = None  # (joints,) where it stood when it was first sent somewhere

    def read(self) -> ArmState:
        with self._turn:
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
        refuses; ServoSilent when the goal would have to start from a position nobody knows; Stopped after an emergency
        stop.
        """
        wanted = self._checked(action)
        with self._turn:
            sent = self._go(wanted)
            self._accepted_at = self._now()
            self.holding = False
            return sent

    def watchdog(self) -> bool:
        """Hold when the last accepted action is too old; call it often, from any thread. True while the arm is held for
        want of actions.

        Before the first action there is nothing to stop: the arm is where it was.
        """
        with self._turn:
            late = self._accepted_at is not None and self._now() - self._accepted_at > self.limits.watchdog_s
            if self.holding or late:
                self.wait()
            return self.holding

    def wait(self) -> np.ndarray | None:
        """There is no action for this tick: hold, once. After `fallback_s` of waiting go to the safe pose, step by step
        with each call, or let go, as the limits say; returns the goal that was then sent ((joints,) float32)."""
        with self._turn:
            if not self.holding:
                self.hold()
                self.holding, self._held_at = True, self._now()
            elif self._now() - self._held_at > self.limits.fallback_s and self.latch.reason is None:
                return self._fall_back()
            return None

    def hold(self) -> None:
        """Stop where the arm is, on purpose. Actions may be sent again at once, and start from there."""
        with self._turn:
            self._goal = self._present = None
            self._arm.hold()
            self._accepted_at, self.holding = None, False  # only now: a watchdog whose hold failed tries again

    def torque(self, on: bool) -> None:
        """On takes the present position as goal; off lets the arm fall. Raises Stopped for on after a stop."""
        with self._turn:
            if on:
                self.require_clear()
            self._goal = self._present = None
            self._carried = False
            self._arm.torque(on)
            self._carried, self.rest_pose = on, None
            self._accepted_at, self.holding = None, False

    def reconnect(self) -> None:
        """After BusLost: find the arm again, and know nothing of where it is. Raises BusLost when it is not there yet
        or cannot be found again at all, and what verifying it raises."""
        with self._turn:
            self._goal = self._present = self._accepted_at = None
            self._carried = self.holding = False
            if not isinstance(self._arm, Reconnecting):
                raise BusLost("this arm cannot be connected anew: start the program again")
            self._arm.reconnect()

    def require_clear(self) -> None:
        """Raises Stopped while an emergency stop is on."""
        if (reason := self.latch.reason) is not None:
            raise Stopped(f"emergency stop ({reason}): look at the arm, then clear it; nothing was sent")

    @property
    def torque_on(self) -> bool:
        """Whether the arm carries itself, as far as it is known here."""
        return self._carried

    def stop(self, reason: str) -> None:
        """Emergency stop: from now on no goal is sent, torque goes off, and is read back as off before this returns.
        Raises StopUnconfirmed when it could not be: torque may still be on. Either way the latch is set."""
        self._end(reason, "torque may still be on", lambda: self._arm.torque(False))
        self._carried = False

    def freeze(self, reason: str) -> None:
        """As `stop`, but the arm keeps its torque and stands still. Raises StopUnconfirmed when a joint did not take
        that."""
        self._end(reason, "it may still move", self._arm.hold)

    def _end(self, reason: str, doubt: str, act: Callable[[], None]) -> None:
        self.latch.set(reason)
        with self._turn:
            self._goal = self._present = self._accepted_at = None
            for left in reversed(range(STOP_ATTEMPTS)):
                try:
                    return act()
                except RobotError as error:
                    if not left:
                        raise StopUnconfirmed(f"stop ({reason}): {doubt}, cut the power: {error}") from error

    def close(self) -> None:
        self._goal = self._present = self._accepted_at = None
        self._arm.close()

    def _go(self, wanted: np.ndarray) -> np.ndarray:
        self.require_clear()  # within the turn: a goal after a stop would switch the torque on again
        start, present = self._start()
        self.rest_pose = start if self.rest_pose is None else self.rest_pose
        wanted = np.clip(wanted, present - self._lead, present + self._lead)
        wanted = np.clip(wanted, start - self._step, start + self._step)
        wanted = start + (wanted - start) * self._share(wanted - start)
        sent = np.clip(wanted.astype(np.float32), self._low, self._high)
        self._goal = self._present = None  # until the arm has taken the new goal, neither is sure
        self._arm.send(sent)
        self._goal = sent.astype(np.float64)
        return sent

    def _share(self, moves: np.ndarray) -> float:
        """How much of a step keeps the tool within its speed. No joint moves it further than its angle times its
        lever, so their sum is a bound on the whole."""
        travel = float(np.abs(moves) @ self._lever)
        return 1.0 if travel <= self.limits.tool_step else self.limits.tool_step / travel

    def _fall_back(self) -> np.ndarray | None:
        if self.limits.fallback == "safe_pose":
            if self._now() - self._stepped_at < self.limits.tick_s:
                return None
            self._stepped_at = self._now()
            return self._go(np.array(self.limits.safe_pose, dtype=np.float64))
        if self.limits.fallback == "release" and self._carried:
            self._arm.torque(False)
            self._carried = False
        return None

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


def _check_pose(pose: Sequence[float], joints: Sequence[JointLimit]) -> None:
    if len(pose) != len(joints):
        raise ConfigError(f"safe_pose: expected {len(joints)} numbers, got {len(pose)}")
    for index, (value, joint) in enumerate(zip(pose, joints, strict=True)):
        if not joint.low <= value <= joint.high:  # also refuses NaN
            raise ConfigError(f"safe_pose: joint {index}: expected {joint.low:g}..{joint.high:g}, got {value}")


def _inward(bounds: Sequence[float], up: bool) -> np.ndarray:
    """The nearest float32 that is not outside of each bound."""
    exact = np.array(bounds, dtype=np.float64)
    rounded = exact.astype(np.float32)
    outside = rounded < exact if up else rounded > exact
    inward = np.nextafter(rounded, np.float32(np.inf if up else -np.inf))
    return np.where(outside, inward, rounded)
