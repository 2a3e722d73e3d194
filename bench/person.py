"""A scripted person at a World, without sockets and servos: shows a task, or takes over from a policy that goes wrong;
recorded as a session would, and what they do is counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hotpolicy.finetune.recorder import Recorder
from hotpolicy.launch.sessions.practice import REPLAN, Corrections
from hotpolicy.launch.teleop import LINGER
from hotpolicy.robots.sim.client import Moment
from hotpolicy.robots.sim.kinematics import MAX_STEP
from hotpolicy.robots.sim.tasks import Task
from hotpolicy.robots.sim.world import RATE_HZ, World, virtual_spec
from hotpolicy.robots.sources import OperatorSource, SharedSource, Source, SteppedPolicySource
from hotpolicy.robots.teleop.scripted import ScriptedOperator
from hotpolicy.runtime.messages import ActionChunk, Observation, Step
from hotpolicy.runtime.policy import Policy


@dataclass
class Work:
    """Of the person, in frames."""

    episodes: int = 0  # that were begun
    failed: int = 0  # demonstrations that had to be given again; corrected episodes that ended badly all the same
    acted: int = 0  # their hands on the arm
    watched: int = 0  # while the policy acted


class Seen:
    """A world as the scripted operator is told of it."""

    def __init__(self, world: World):
        self.world = world

    @property
    def moment(self) -> Moment:
        world, referee = self.world, self.world.referee
        return Moment(
            np.empty(0), 0.0, world.task.instruction, referee.ticks, referee.success, referee.over, False, world.truth()
        )


class Direct:
    """What SteppedPolicySource needs of a client, and the policy itself behind it."""

    def __init__(self, policy: Policy, seed: int):
        self.policy, self.noise = policy, np.random.default_rng(seed)

    def new_episode(self) -> None:
        pass

    def infer(self, observation: Observation, deadline_ms: float | None = None) -> ActionChunk:
        policy = self.policy
        actions = policy.infer([observation], policy.transforms.noise(self.noise, 1))[0]
        return ActionChunk(actions, RATE_HZ, 0.0, 0, policy.version, policy.digest, guided=False)


def episode(world: World, source: Source, taker: Recorder | Corrections, work: Work) -> bool:
    """One, until the referee ends it and a little longer; whether it went well. The caller saves or discards it."""
    instruction, referee = world.task.instruction, world.referee
    taker.begin(instruction)
    source.begin(instruction)
    work.episodes += 1
    won, left = False, world.task.time_limit
    while left:
        seen, goal = world.observe(), world.goal_units()
        wish = source.act(seen)
        assert wish is not None
        wished = goal if wish.action is None else wish.action
        sent = (goal + np.clip(wished - goal, -MAX_STEP, MAX_STEP)).astype(np.float32)
        taker.step(Step(seen, np.asarray(wished, np.float32), sent, wish.version, wish.intervention))
        world.aim(sent)
        world.tick()
        work.acted += wish.version is None
        work.watched += wish.version is not None
        won |= referee.success
        left = min(left - 1, LINGER) if referee.over else left - 1
    return won


def demonstrated(folder: Path, tasks: Sequence[Task], scene: int, enough: Callable[[int, Work], bool]) -> Work:
    """More demonstrations that succeed, until those recorded now, and the work they took, are enough."""
    work, world = Work(), World()
    source = OperatorSource(ScriptedOperator(Seen(world)))  # type: ignore[arg-type]
    with Recorder.open(folder, virtual_spec()) as recorder:
        before = len(recorder)
        while not enough(len(recorder) - before, work):
            world.reset(tasks[len(recorder) % len(tasks)], scene + work.episodes)
            if episode(world, source, recorder, work):
                recorder.save(success=True)
            else:
                work.failed += 1
                recorder.discard()
    return work


def corrected(folder: Path, tasks: Sequence[Task], scene: int, episodes: int, policy: Policy) -> Work:
    """`episodes` more by the policy in which the script took over; those that need nobody are only watched."""
    work, world = Work(), World()
    own = SteppedPolicySource(Direct(policy, scene), REPLAN)  # type: ignore[arg-type]
    source = SharedSource(own, ScriptedOperator(Seen(world)))  # type: ignore[arg-type]
    with Recorder.open(folder, virtual_spec()) as recorder:
        taker, until = Corrections(recorder), len(recorder) + episodes
        while len(recorder) < until:
            world.reset(tasks[work.episodes % len(tasks)], scene + work.episodes)
            won = episode(world, source, taker, work)
            work.failed += taker.corrected and not won
            taker.save(success=won)
    return work
