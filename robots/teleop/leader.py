"""A leader arm as operator: a hand moves it, and the follower does the same.

At the start of an episode and at every take-over the follower slides to where the leader is, and is let loose only when
it has arrived: it never jumps. While a policy drives, a leader with motors follows the follower, so that there is
little to slide when the hand takes over.
"""

from __future__ import annotations

import logging

import numpy as np

from hotpolicy.robots.limits import LimitedArm
from hotpolicy.robots.teleop.controls import Controlled, Controls
from hotpolicy.runtime.errors import ConfigError, RobotError
from hotpolicy.runtime.messages import Observation, RobotSpec

log = logging.getLogger(__name__)

SLIDE_S = 1.5  # to cross a joint's whole range on the way to the leader
NEAR = 2.0  # deg or percent: the follower has arrived


class LeaderOperator(Controlled):
    """Implements robots.robot.Operator; `decision`, `in_control`, `paused` and `follow` are what robots.operators asks
    for. The leader is behind limits of its own; a hand has to be able to move it, so it is released but to follow."""

    def __init__(self, leader: LimitedArm, spec: RobotSpec, controls: Controls, follows: bool = True):
        """`spec`: the follower's. `follows`: whether the leader may switch its motors on. Raises ConfigError when the
        two arms do not have the same joints in the same units."""
        ours = [(joint.name, joint.unit) for joint in spec.joints]
        theirs = [(joint.name, joint.unit) for joint in leader.spec.joints]
        if ours != theirs:
            first = next((pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]), (ours, theirs))
            raise ConfigError(f"leader: expected the follower's joints, {first[0]}, got {first[1]}")
        self.leader = leader
        self._controls = controls
        self._follows = follows
        span = np.array([joint.high - joint.low for joint in spec.joints])
        self._slide = span / (SLIDE_S * spec.rate_hz)  # per tick
        self._target: np.ndarray | None = None  # (joints,) on the way to the leader; None: not begun
        self._joined = False  # the follower is where the leader is

    def begin(self, task: str) -> None:
        self._controls.begin()
        self._let_go()

    def act(self, observation: Observation) -> np.ndarray | None:
        """(joints,) float32 where the leader is, or on the way to it; None when a key has ended the episode. While a
        joint of the leader is silent the follower stays where it was sent. Raises BusLost when the leader is gone."""
        before = self.in_control, self.paused
        if self._controls.press() is None:
            self._let_go()
            return None
        if before != (self.in_control, self.paused):
            self._let_go()
        if self._target is None:
            self._target = observation.state.astype(np.float64)
        state = self.leader.read()
        if not state.stale:
            self._target = self._towards(state.positions.astype(np.float64))
        return self._target.astype(np.float32)

    def follow(self, state: np.ndarray) -> None:
        """A policy drives the follower, which is at `state` ((joints,), its units): go along, where there are motors.
        What goes wrong with that is logged, and costs nobody anything."""
        self._target, self._joined = None, False  # whatever the hand was at is over
        if not self._follows:
            return
        try:
            if not self.leader.torque_on:
                self.leader.torque(True)
            self.leader.send(state)
        except RobotError as error:
            log.warning("the leader does not follow any more: %s", error)
            self._follows = False
            self._release()

    def close(self) -> None:
        """Release the leader, and give back its port and the terminal."""
        self._controls.close()
        self._release()
        self.leader.close()

    def _towards(self, goal: np.ndarray) -> np.ndarray:
        assert self._target is not None
        if self._joined:
            return goal
        target = self._target + np.clip(goal - self._target, -self._slide, self._slide)
        self._joined = bool(np.abs(goal - target).max() <= NEAR)
        return target

    def _let_go(self) -> None:
        """From here on a hand moves the leader, and the follower has to slide to it."""
        self._target, self._joined = None, False
        self._release()

    def _release(self) -> None:
        if not self.leader.torque_on:
            return
        try:
            self.leader.torque(False)
        except RobotError as error:
            log.warning("the leader does not let go: %s", error)
