"""The only road to the motors: what is not a number is refused, what goes too far or too fast is cut, and when actions
stop coming the arm holds, and later goes to its safe pose or lets go, as it was told. An emergency stop ends all that.

What a goal may become is decided in `reach`, when to stop waiting in `patience`, and `bounds` has the numbers both keep
to. Knows joints in the arm's units, and no bus.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from hotpolicy.robots.bounds import TOOL_SPEED, Fallback, JointLimit, Limits
from hotpolicy.robots.latch import Latch, OpenLatch
from hotpolicy.robots.patience import Patience
from hotpolicy.robots.reach import Reach
from hotpolicy.robots.robot import Arm, ArmState, Reconnecting
from hotpolicy.runtime import clock
from hotpolicy.runtime.errors import BusLost, ConfigError, RobotError, ServoSilent, Stopped, StopUnconfirmed

__all__ = ["TOOL_SPEED", "Fallback", "JointLimit", "LimitedArm", "Limits"]  # with what an arm is limited by

STOP_ATTEMPTS = 3  # to release the arm, each of them with the bus's own repetitions


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
        self.latch: Latch = OpenLatch() if latch is None else latch
        self._arm = arm
        self._reach = Reach(arm.spec.joints, limits)
        self._patience = Patience(limits, now)
        self._turn = threading.RLock()  # between a goal and a stop: none is sent once the stop has begun
        self._goal: np.ndarray | None = None  # the last goal the servos were sent; None: not known
        self._present: np.ndarray | None = None  # as read since the last goal
        self._carried = False
        self.rest_pose: np.ndarray | None = None  # (joints,) where it stood when it was first sent somewhere

    @property
    def holding(self) -> bool:
        """The watchdog has stopped the arm, and no action was accepted since."""
        return self._patience.holding

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
        wanted = self._reach.checked(action)
        with self._turn:
            sent = self._go(wanted)
            self._patience.accept()
            return sent

    def watchdog(self) -> bool:
        """Hold when the last accepted action is too old; call it often, from any thread. True while the arm is held for
        want of actions.

        Before the first action there is nothing to stop: the arm is where it was.
        """
        with self._turn:
            if self._patience.over:
                self.wait()
            return self.holding

    def wait(self) -> np.ndarray | None:
        """There is no action for this tick: hold, once. After `fallback_s` of waiting go to the safe pose, step by step
        with each call, or let go, as the limits say; returns the goal that was then sent ((joints,) float32)."""
        with self._turn:
            if not self.holding:
                self.hold()
                self._patience.hold()
            elif self.latch.reason is None:
                return self._fall_back()
            return None

    def hold(self) -> None:
        """Stop where the arm is, on purpose. Actions may be sent again at once, and start from there."""
        with self._turn:
            self._goal = self._present = None
            self._arm.hold()
            self._patience.start_over()  # only now: a watchdog whose hold failed tries again

    def torque(self, on: bool) -> None:
        """On takes the present position as goal; off lets the arm fall. Raises Stopped for on after a stop."""
        with self._turn:
            if on:
                self.require_clear()
            self._goal = self._present = None
            self._carried = False
            self._arm.torque(on)
            self._carried, self.rest_pose = on, None
            self._patience.start_over()

    def reconnect(self) -> None:
        """After BusLost: find the arm again, and know nothing of where it is. Raises BusLost when it is not there yet
        or cannot be found again at all, and what verifying it raises."""
        with self._turn:
            self._goal = self._present = None
            self._carried = False
            self._patience.start_over()
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
            self._goal = self._present = None
            self._patience.end()
            for left in reversed(range(STOP_ATTEMPTS)):
                try:
                    return act()
                except RobotError as error:
                    if not left:
                        raise StopUnconfirmed(f"stop ({reason}): {doubt}, cut the power: {error}") from error

    def close(self) -> None:
        self._goal = self._present = None
        self._patience.end()
        self._arm.close()

    def _go(self, wanted: np.ndarray) -> np.ndarray:
        self.require_clear()  # within the turn: a goal after a stop would switch the torque on again
        start, present = self._start()
        self.rest_pose = start if self.rest_pose is None else self.rest_pose
        sent = self._reach.cut(wanted, start, present)
        self._goal = self._present = None  # until the arm has taken the new goal, neither is sure
        self._arm.send(sent)
        self._goal = sent.astype(np.float64)
        return sent

    def _fall_back(self) -> np.ndarray | None:
        match self._patience.fallback():
            case "safe_pose":
                return self._go(np.array(self.limits.safe_pose, dtype=np.float64))
            case "release" if self._carried:
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
            return self._reach.inside(present), present
        if self._present is None and self._reach.needs_present:
            self.read()
        return self._goal, self._goal if self._present is None else self._present
