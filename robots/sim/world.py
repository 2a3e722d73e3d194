"""One episode's world, in the robot's own units: the scene, a task, its referee and a scripted operator.

Used inside the virtual-arm process, and directly where data is made faster than any wire could carry it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hotpolicy.robots.sim import kinematics
from hotpolicy.robots.sim.scene import IMAGE_SIZE, Scene
from hotpolicy.robots.sim.tasks import Referee, Task, draw_cubes, draw_start
from hotpolicy.robots.teleop.scripted import Script, Truth
from hotpolicy.runtime.messages import CameraSpec, Observation, RobotSpec

RATE_HZ = 10.0


def virtual_spec(image_size: int = IMAGE_SIZE) -> RobotSpec:
    """What the virtual arm is made of: six joints and one camera, 10 actions per second."""
    return RobotSpec(kinematics.spec_joints(), (CameraSpec("front", image_size, image_size),), RATE_HZ)


@dataclass(frozen=True, slots=True)
class Mount:
    """A fault of assembly: what the encoders read (and what a goal means) is off by this much."""

    offset: tuple[float, ...] = (0.0,) * 6  # simulator joints: rad, gripper m


class World:
    """reset, observe, act. Joint vectors at this door are degrees and percent."""

    def __init__(self, image_size: int = IMAGE_SIZE, mount: Mount | None = None):
        self.scene = Scene(image_size)
        self.offset = np.array((mount or Mount()).offset)
        self.goal = kinematics.HOME.copy()  # simulator joints the servos pull towards
        self.reset(Task("touch", "red"), seed=0)

    def reset(self, task: Task, seed: int, wide: bool = False) -> None:
        """Draw a scene for `task`; the same seed always gives the same one."""
        rng = np.random.default_rng(seed)
        cubes = draw_cubes(rng, task)
        self.goal = draw_start(rng, wide)
        self.scene.reset(self.goal, cubes)
        self.task, self.present = task, tuple(cubes)
        self.referee = Referee(task, self.scene)
        self.script = Script(task)

    def tick(self) -> None:
        """One control period of physics, and the referee's look at it."""
        self.scene.advance(self.goal)
        self.referee.tick()

    def advance(self, substeps: int) -> None:
        """A slice of a control period, for those who run by the clock and call `referee.tick` themselves."""
        self.scene.advance(self.goal, substeps)

    def ticks(self) -> np.ndarray:
        """(6,) what the encoders read."""
        return kinematics.ticks(self.scene.joints() + self.offset)

    def state(self) -> np.ndarray:
        """(6,) float32 degrees and percent, as the encoders round them."""
        joints = kinematics.joints_from_ticks(self.ticks())
        return kinematics.units(joints).astype(np.float32)

    def observe(self) -> Observation:
        return Observation({"front": self.scene.image()}, self.state(), self.task.instruction)

    def aim(self, target: np.ndarray) -> None:
        """Set the goal, (6,) degrees and percent, without any limit: limits belong to the robot's driver."""
        self.goal = kinematics.joints_from_units(target) - self.offset

    def goal_units(self) -> np.ndarray:
        return kinematics.units(self.goal + self.offset)

    def truth(self) -> Truth:
        return Truth(self.scene.tip(), self.scene.cube(self.task.colour), self.referee.start)

    def script_target(self) -> np.ndarray:
        """(6,) degrees and percent: where the scripted operator would go next."""
        return kinematics.units(self.script.act(self.truth()) + self.offset)
