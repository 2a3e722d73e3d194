"""Success checks for the gate: tasks of the simulated table, tried by the candidate and by what it would replace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hotpolicy.finetune.gate import Trial
from hotpolicy.launch.rollouts import rollout, share
from hotpolicy.robots.sim.tasks import Task
from hotpolicy.runtime.errors import BadRequest
from hotpolicy.runtime.policy import Policy

SEED = 700_000_000  # scenes that no demonstration and no examination uses


def simulated(tasks: Sequence[str]) -> list[Task]:
    """Those of `tasks` that the simulated table knows."""
    found = []
    for instruction in tasks:
        try:
            found.append(Task.parse(instruction))
        except BadRequest:
            continue
    return found


def try_tasks(
    candidate: Policy, live: Policy, new: Sequence[str], old: Sequence[str], episodes: int
) -> Iterator[Trial]:
    """New tasks by the candidate, `episodes` in all; for old ones, by verb, as many by each of the two."""
    for index, (task, count) in enumerate(share(simulated(new), episodes)):
        if count:
            score = rollout(candidate, task, count, SEED + 1000 * index)
            yield Trial(task.instruction, score.successes, score.episodes)
    verbs: dict[str, list[Task]] = {}
    for task in simulated([name for name in old if name not in new]):
        verbs.setdefault(task.verb, []).append(task)
    for verb, known in verbs.items():
        each = max(1, episodes // len(known))
        wins = {"candidate": 0, "live": 0}
        for index, task in enumerate(known):
            seed = SEED + 100_000 + 1000 * index
            wins["candidate"] += rollout(candidate, task, each, seed).successes
            wins["live"] += rollout(live, task, each, seed).successes
        total = each * len(known)
        yield Trial(f"{verb} (known before)", wins["candidate"], total, live=wins["live"] / total)
