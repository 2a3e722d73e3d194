"""The comparison of bench/rtc.py in lock-step: the same on any machine, and many more episodes.

    python bench/rtc_stepped.py                     # delays of 1 to 4 ticks x 7 ways x 100 episodes, about 10 min

Time stands still while the policy computes, and its answer is in use so many ticks (0.1 s) after it was asked for,
always. No sockets, no servos: goals go to the simulated joints within the virtual arm's limits, and stay where they
were while there is none. The policy, the chunk buffer and what a server keeps of a session are the ones in use.
"""

from __future__ import annotations

import argparse

import numpy as np
from rtc import LONGEST, RATE, SCENES, WAYS, Episode, Misled, Noted, Row, Take, measured, table, task_of

from hotpolicy.launch.machine import describe_machine
from hotpolicy.launch.nano import SHIPPED
from hotpolicy.robots.sim.kinematics import MAX_STEP
from hotpolicy.robots.sim.tasks import Task
from hotpolicy.robots.sim.world import World
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.chunks import ChunkBuffer
from hotpolicy.runtime.messages import ActionChunk, InferRequest, Observation, Rtc, Step
from hotpolicy.runtime.policy import Policy, load_policy
from hotpolicy.runtime.serving.epochs import Epochs

ROBOT = (b"", "robot")


class Late:
    """What PolicySource needs of a client, and the server behind it: an answer comes `delay` ticks after it was asked
    for."""

    def __init__(self, policy: Policy, delay: int):
        self.policy, self.delay = policy, delay
        self.tick = 0
        self.rng = np.random.default_rng(0)
        self._epochs = Epochs(1)
        self._ids = self._episode = 0
        self._asked: InferRequest | None = None
        self._due = 0

    def clock(self) -> float:
        return self.tick / RATE

    def new_episode(self) -> None:
        self._episode += 1
        self._asked = None

    def ask(self, observation: Observation, deadline_ms: float | None = None, rtc: Rtc | None = None) -> int:
        self._ids += 1
        self._asked = InferRequest(self._ids, "robot", observation, self.clock(), 1e4, episode=self._episode, rtc=rtc)
        self._due = self.tick + self.delay
        return self._ids

    def poll(self) -> ActionChunk | None:
        request = self._asked
        if request is None or self.tick < self._due:
            return None
        self._asked = None
        policy = self.policy
        guide = self._epochs.guide(ROBOT, request, policy.version)
        noise = policy.transforms.noise(self.rng, 1)
        actions = policy.infer([request.observation], noise, [guide] if guide else None)[0]
        self._epochs.keep(ROBOT, request, policy.version, actions)
        return ActionChunk(
            actions, RATE, request.observed_at, request.id, policy.version, policy.digest, guided=guide is not None
        )


def attempt(world: World, source: Noted, late: Late, seed: int) -> Episode:
    world.reset(Task.parse(task_of(seed)), seed)
    late.rng = np.random.default_rng(seed)
    take, held = Take(), source.buffer.holds
    take.begin(world.task.instruction)
    source.begin(world.task.instruction)
    while not world.referee.success and len(take.sent) < LONGEST:
        observation = world.observe()
        wish, goal = source.act(observation), world.goal_units()
        wished = goal if wish.action is None else wish.action
        sent = goal + np.clip(wished - goal, -MAX_STEP, MAX_STEP)
        world.aim(sent)
        take.step(Step(observation, np.asarray(wished), sent))
        world.tick()
        late.tick += 1
    return measured(seed, take, source, world.referee.success, source.buffer.holds - held, late=0)


def run(policy: Policy, world: World, delay: int, way: str, episodes: int) -> Row:
    late = Late(policy, delay)
    buffer = (Misled if "told" in way else ChunkBuffer)(RATE, now=late.clock, **WAYS[way])
    source = Noted(late, buffer)  # type: ignore[arg-type]
    attempt(world, source, late, SCENES)  # latencies are not known yet: not counted
    return Row(f"{delay} ticks", way, [attempt(world, source, late, SCENES + 1 + n) for n in range(episodes)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delays", type=int, nargs="+", default=[1, 2, 3, 4], metavar="TICKS")
    parser.add_argument("--episodes", type=int, default=100, help="of each way at each delay")
    options = parser.parse_args()
    policy, world, rows = load_policy([Bundle.open(SHIPPED)]), World(), []
    for delay in options.delays:
        for way in WAYS:
            rows.append(run(policy, world, delay, way, options.episodes))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(describe_machine())
    print(table(rows))


if __name__ == "__main__":
    main()
