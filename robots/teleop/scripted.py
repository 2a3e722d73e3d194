"""A scripted operator: a small state machine over the true positions of things, for demonstrations without a person.

It sees what no policy sees (where the cubes are), so it is an operator of simulations only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hotpolicy.robots.sim.kinematics import MAX_STEP, reach, units
from hotpolicy.robots.sim.scene import HALF
from hotpolicy.robots.sim.tasks import Task
from hotpolicy.robots.teleop.course import Course
from hotpolicy.runtime.messages import Observation

if TYPE_CHECKING:
    from hotpolicy.robots.sim.client import VirtualWorld

OPEN, CLOSED = 0.03, 0.0  # gripper, m
FINE = 0.012  # close enough above the cube to go down, m


@dataclass(frozen=True, slots=True)
class Truth:
    """What the simulator knows and a camera has to guess."""

    tip: np.ndarray  # (3,) m
    cube: np.ndarray  # (3,) m, centre of the named cube now
    start: np.ndarray  # (3,) m, where it was when the episode began


class Script:
    """Joint targets for one episode of one task. Stateful: make a new one for each episode."""

    def __init__(self, task: Task):
        self.task = task
        self._phase = 0
        self._held = 0  # ticks spent closing the gripper
        self._grasp = np.zeros(2)
        self._plan = {
            "touch": self._touch, "hover": self._hover, "lift": self._lift, "push": self._shove, "sweep": self._shove,
        }[task.verb]  # fmt: skip

    def act(self, truth: Truth) -> np.ndarray:
        """(6,) simulator joints to move towards."""
        return self._plan(truth)

    def _touch(self, truth: Truth) -> np.ndarray:
        x, y, _ = truth.cube
        near = _across(truth.tip, truth.cube)
        if near < FINE:
            self._phase = 1
        if near > 0.025:
            self._phase = 0
        return reach(x, y, 0.075 if self._phase == 0 else 2 * HALF - 0.006, CLOSED)

    def _hover(self, truth: Truth) -> np.ndarray:
        return reach(truth.cube[0], truth.cube[1], 0.07, CLOSED)

    def _lift(self, truth: Truth) -> np.ndarray:
        x, y, _ = truth.cube
        if self._phase == 0 and _across(truth.tip, truth.cube) < 0.010:
            self._phase = 1
        if self._phase == 1 and truth.tip[2] < 0.024:
            self._phase, self._held = 2, 0
        if self._phase == 2:
            self._held += 1
            if self._held > 4:
                self._phase, self._grasp = 3, np.array([x, y])
        if self._phase == 0:
            return reach(x, y, 0.08, OPEN)
        if self._phase == 1:
            return reach(x, y, 0.016, OPEN)
        if self._phase == 2:
            return reach(x, y, 0.016, CLOSED)
        return reach(self._grasp[0], self._grasp[1], 0.09, CLOSED)

    def _shove(self, truth: Truth) -> np.ndarray:
        """Go behind the cube, down, and through it: outwards (push) or to the left with the wrist turned (sweep)."""
        start = truth.start[:2]
        distance = float(np.hypot(*start))
        if self.task.verb == "push":
            along, roll = start / distance, 0.0
            behind, through = along * (distance - 0.047), along * (distance + 0.03)
        else:
            along, roll = np.array([-start[1], start[0]]) / distance, np.pi / 2
            behind, through = start - along * 0.045, start + along * 0.045
        if self._phase == 0 and np.hypot(*(truth.tip[:2] - behind)) < FINE:
            self._phase = 1
        if self._phase == 1 and truth.tip[2] < 0.03:
            self._phase = 2
        if self._phase < 2:
            return reach(behind[0], behind[1], 0.075 if self._phase == 0 else 0.018, CLOSED, roll)
        return reach(through[0], through[1], 0.018, CLOSED, roll)


def _across(a: np.ndarray, b: np.ndarray) -> float:
    """Horizontal distance, m."""
    return float(np.hypot(a[0] - b[0], a[1] - b[1]))


class ScriptedOperator:
    """An Operator of virtual arms: plays the script of whatever task the world was reset to. Beside a policy it acts
    (`in_control`) only while that is off the script's course."""

    def __init__(self, world: VirtualWorld):
        self.world = world
        self._script: Script | None = None
        self._course = Course(MAX_STEP)
        self._last_tick = -1

    @property
    def in_control(self) -> bool:
        return self._course.in_control

    def act(self, observation: Observation) -> np.ndarray | None:
        """(6,) targets in degrees and percent. It never ends an episode: the world's referee does."""
        moment = self.world.moment
        if self._script is None or moment.tick <= self._last_tick:  # the world was reset
            self._script, self._course = Script(Task.parse(moment.task)), Course(MAX_STEP)
        self._last_tick = moment.tick
        target = units(self._script.act(moment.truth)).astype(np.float32)
        self._course.watch(observation.state, target)
        return target

    def close(self) -> None:
        pass
