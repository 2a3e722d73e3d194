"""Success of a policy on the simulated table, many episodes side by side: for pretraining and for the gate.

The policy is called directly and the arm's servos are left out; limits are the virtual arm's. What the demo reports
is measured the long way, through serial port and socket.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hotpolicy.robots.sim.kinematics import MAX_STEP
from hotpolicy.robots.sim.tasks import Task
from hotpolicy.robots.sim.world import Mount, World
from hotpolicy.runtime.messages import Observation
from hotpolicy.runtime.policy import Policy

EXECUTED = 4  # actions of each chunk that are carried out before the next is asked for


@dataclass(frozen=True, slots=True)
class Score:
    task: str
    successes: int
    episodes: int

    @property
    def rate(self) -> float:
        return self.successes / self.episodes


Blind = Callable[[list[Observation]], list[Observation]]  # takes away what a control experiment forbids to see


def rollout(
    policy: Policy, task: Task, episodes: int, seed: int, blind: Blind | None = None, mount: Mount | None = None
) -> Score:
    """`episodes` scenes drawn from `seed`, seed + 1, ...; actions are sampled from fixed noise. `mount`: of an arm
    that was put together in another way."""
    worlds = [World(mount=mount) for _ in range(min(episodes, 25))]
    noise = np.random.default_rng(seed)
    successes = 0
    for first in range(0, episodes, len(worlds)):
        live = worlds[: episodes - first]
        for index, world in enumerate(live):
            world.reset(task, seed + first + index)
        while live:
            seen = [world.observe() for world in live]
            start = policy.transforms.noise(noise, len(live))
            chunks = policy.infer(blind(seen) if blind else seen, start)
            for world, chunk in zip(live, chunks, strict=True):
                _execute(world, chunk[:EXECUTED])
            successes += sum(world.referee.success for world in live)
            live = [world for world in live if not world.referee.over]
    return Score(task.instruction, successes, episodes)


def share(tasks: Sequence[Task], episodes: int) -> list[tuple[Task, int]]:
    """`episodes` in all, spread over the tasks as evenly as it goes."""
    return [(task, episodes // len(tasks) + (index < episodes % len(tasks))) for index, task in enumerate(tasks)]


def _execute(world: World, actions: np.ndarray) -> None:
    for action in actions:
        goal = world.goal_units()
        world.aim(goal + np.clip(action - goal, -MAX_STEP, MAX_STEP))
        world.tick()
        if world.referee.over:
            return


def other_images(seen: list[Observation]) -> list[Observation]:
    """A control: every robot sees another robot's picture; the last one left sees nothing."""
    if len(seen) == 1:
        return [replace(seen[0], images={name: np.zeros_like(image) for name, image in seen[0].images.items()})]
    shifted = [*seen[1:], seen[0]]
    return [replace(mine, images=other.images) for mine, other in zip(seen, shifted, strict=True)]


def no_colour(colours: Sequence[str]) -> Blind:
    """A control: the instruction does not say which cube."""

    def hide(seen: list[Observation]) -> list[Observation]:
        words = [[("thing" if w in colours else w) for w in one.task.split()] for one in seen]
        return [replace(one, task=" ".join(text)) for one, text in zip(seen, words, strict=True)]

    return hide
