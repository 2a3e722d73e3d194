"""Demonstrations made straight in a World: no wire, no servos, as fast as physics goes. For pretraining data.

Targets are perturbed while they are executed (DART: Laskey et al. 2017, arXiv 1703.09327) so that the data
shows how to come back, while the label is always the clean target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hotpolicy.robots.sim.kinematics import MAX_STEP, units
from hotpolicy.robots.sim.scene import HALF
from hotpolicy.robots.sim.tasks import KNOWN_COLOURS, Task
from hotpolicy.robots.sim.world import World

MAX_TICKS = 60
TAIL = 2  # ticks kept after success: standing still is not worth learning
ABSENT = np.array([-0.5, 0.0, HALF])
_DEGREES = (units(np.array([1.0] * 5 + [0.0])) - units(np.zeros(6)))[:5]  # of one radian, first five joints


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One successful episode, frame by frame, with the privileged labels that only a simulator has."""

    images: np.ndarray  # (frames, size, size, 3) uint8
    state: np.ndarray  # (frames, 6) float32, deg and percent
    action: np.ndarray  # (frames, 6) float32, clean absolute targets
    task: Task
    places: np.ndarray  # (frames, 4, 2) float32, each known colour in the image, 0..1
    present: np.ndarray  # (4,) bool, whether that colour is on the table


def demonstrate(world: World, task: Task, seed: int, *, wide: bool, perturb: bool) -> Demonstration | None:
    """Run the scripted operator once; None when it did not succeed (such an episode teaches the wrong thing)."""
    world.reset(task, seed, wide)
    rng = np.random.default_rng(seed + 1_000_000)
    images, states, actions, cubes = [], [], [], []
    succeeded, after = False, 0
    for _ in range(MAX_TICKS):
        goal = world.goal_units()
        clean = goal + np.clip(world.script_target() - goal, -MAX_STEP, MAX_STEP)
        observation = world.observe()
        images.append(observation.images["front"])
        states.append(observation.state)
        actions.append(clean)
        cubes.append([world.scene.cube(c) if c in world.present else ABSENT for c in KNOWN_COLOURS])
        sent = _perturbed(clean, rng) if perturb else clean
        world.aim(goal + np.clip(sent - goal, -MAX_STEP, MAX_STEP))
        world.tick()
        if world.referee.spoilt and not perturb:
            return None
        # While perturbed, brushing another cube is forgiven: the lesson is how to go on from there.
        succeeded = succeeded or (world.referee.reached() if perturb else world.referee.success)
        after += succeeded
        if after > TAIL:
            break
    if not succeeded:
        return None
    places = world.scene.camera.project(np.array(cubes)).astype(np.float32)
    present = np.array([colour in world.present for colour in KNOWN_COLOURS])
    return Demonstration(
        np.stack(images), np.stack(states), np.stack(actions).astype(np.float32), task, places, present
    )


def _perturbed(target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """8 % of ticks are pushed hard (sigma 0.12 rad), 27 % a little (0.025 rad), the rest not at all."""
    draw = rng.random()
    pushed = target.copy()
    if draw < 0.08:
        pushed[:5] += rng.normal(0, 0.12, 5) * _DEGREES * [1, 1, 1, 1, 0.5]
    elif draw < 0.35:
        pushed[:5] += rng.normal(0, 0.025, 5) * _DEGREES
    return pushed
