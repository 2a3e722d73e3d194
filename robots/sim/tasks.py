"""Tasks on the table: what an instruction means, how a scene for it is drawn, and when it is done."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hotpolicy.robots.sim.kinematics import HOME, reach
from hotpolicy.robots.sim.scene import COLOURS, HALF, Scene
from hotpolicy.runtime.errors import BadRequest

KNOWN_COLOURS = ("red", "green", "blue", "yellow")  # what the shipped base policy has seen
PHRASES = {
    "touch": "touch the {} cube",
    "lift": "lift the {} cube",
    "hover": "hover over the {} cube",
    "push": "push the {} cube away",
    "sweep": "sweep the {} cube left",
}
# A strict limit on touch, or else a wandering arm meets the cube by luck. Ticks of 0.1 s.
TIME_LIMIT = {"touch": 20, "lift": 40, "hover": 40, "push": 40, "sweep": 40}


@dataclass(frozen=True, slots=True)
class Task:
    verb: str
    colour: str

    @property
    def instruction(self) -> str:
        return PHRASES[self.verb].format(self.colour)

    @property
    def time_limit(self) -> int:
        return TIME_LIMIT[self.verb]

    @classmethod
    def parse(cls, instruction: str) -> Task:
        """Raises BadRequest for an instruction that names no known verb or cube."""
        words = instruction.split()
        colour = next((word for word in words if word in COLOURS), None)
        if not words or words[0] not in PHRASES or colour is None:
            raise BadRequest(
                f"task: expected a verb of {', '.join(PHRASES)} and a cube of {', '.join(COLOURS)}, got {instruction!r}"
            )
        return cls(words[0], colour)


def draw_start(rng: np.random.Generator, wide: bool) -> np.ndarray:
    """Where the arm begins, (6,) simulator joints: near home, or anywhere over the table (`wide`, for data only)."""
    if wide:
        radius, angle = rng.uniform(0.11, 0.22), rng.uniform(-1.1, 1.1)
        height, grip = rng.uniform(0.075, 0.17), rng.uniform(0, 0.03)
        return reach(radius * np.cos(angle), radius * np.sin(angle), height, grip)
    start = HOME.copy()
    start[0] += rng.uniform(-0.4, 0.4)
    start[1:4] += rng.uniform(-0.05, 0.05, 3)
    return start


def draw_cubes(rng: np.random.Generator, task: Task) -> dict[str, tuple[float, float, float]]:
    """Three or four cubes on the table, the named one always among them, at least 6.2 cm apart."""
    count = int(rng.integers(3, 5))
    others = [colour for colour in KNOWN_COLOURS if colour != task.colour]
    rng.shuffle(others)
    present = [task.colour, *others][:count]
    points: list[np.ndarray] = []
    while len(points) < count:
        radius, angle = rng.uniform(0.125, 0.225), rng.uniform(-0.95, 0.95)
        point = np.array([radius * np.cos(angle), radius * np.sin(angle)])
        if all(np.linalg.norm(point - other) > 0.062 for other in points):
            points.append(point)
        elif rng.random() < 0.02:  # the others leave no room: begin again
            points = []
    return {
        colour: (point[0], point[1], rng.uniform(-0.5, 0.5) + np.arctan2(point[1], point[0]))
        for colour, point in zip(present, points, strict=True)
    }


class Referee:
    """Watches a scene and says whether the task is done or spoilt. Touching any other cube spoils it."""

    def __init__(self, task: Task, scene: Scene):
        self.task, self.scene = task, scene
        self.start = scene.cube(task.colour)
        self.ticks = 0
        self.steady = 0  # ticks in a row that the tip has been above the cube without touching it
        self.success = False

    @property
    def spoilt(self) -> bool:
        return any(colour != self.task.colour for colour in self.scene.touched)

    @property
    def over(self) -> bool:
        return self.success or self.spoilt or self.ticks >= self.task.time_limit

    def tick(self) -> None:
        """Call once after each control tick."""
        self.ticks += 1
        self._hover()
        self.success = not self.spoilt and self.reached()

    def reached(self) -> bool:
        """Whether the goal of the task holds now, spoilt or not."""
        verb, cube, start = self.task.verb, self.scene.cube(self.task.colour), self.start
        flat = bool(cube[2] < HALF + 0.01)
        if verb == "touch":
            return self.task.colour in self.scene.touched
        if verb == "lift":
            return bool(cube[2] > 0.05)
        if verb == "push":  # at least 3 cm away from the base, still flat on the table
            return bool(np.linalg.norm(cube[:2]) - np.linalg.norm(start[:2]) > 0.03) and flat
        if verb == "sweep":  # at least 3 cm to the robot's left
            left = np.array([-start[1], start[0]]) / np.hypot(start[0], start[1])
            return bool((cube[:2] - start[:2]) @ left > 0.03) and flat
        return self.steady >= 3  # hover

    def _hover(self) -> None:
        tip, cube = self.scene.tip(), self.scene.cube(self.task.colour)
        above = 0.055 < tip[2] < 0.085 and np.hypot(*(tip[:2] - cube[:2])) < 0.015
        self.steady = self.steady + 1 if above and self.task.colour not in self.scene.touched else 0
