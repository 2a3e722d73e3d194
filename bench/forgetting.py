"""What tuning costs the old tasks: new goals, a re-mounted arm, a new colour, new words; by strategy and replay.

    python bench/forgetting.py --out forgetting.jsonl                  # everything: hours on one core
    python bench/forgetting.py --out forgetting.jsonl --subjects purple --seeds 0
    python bench/forgetting.py --out forgetting.jsonl --table          # only print what is there

Every run tunes the shipped nano policy on 24 demonstrations of a script, and is then tried in scenes it never saw: its
new task, and each old one (touch and lift, four colours). A run that is in the file already is not done again.
Intervals are Wilson's, over the episodes of all seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from hotpolicy.finetune.lessons import Lessons, split_frames
from hotpolicy.finetune.replay import rehearsal_of
from hotpolicy.finetune.samples import Samples, chunks, join
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.finetune.trainer import Trainer
from hotpolicy.launch.nano import SHIPPED, VERBS
from hotpolicy.launch.rollouts import rollout
from hotpolicy.robots.sim.demonstrations import demonstrate
from hotpolicy.robots.sim.tasks import KNOWN_COLOURS, Task
from hotpolicy.robots.sim.world import Mount, World
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.engine.torch_engine import TorchEngine
from hotpolicy.runtime.engine.torch_place import TorchOptions
from hotpolicy.runtime.messages import Observation
from hotpolicy.runtime.policy import Policy, load_policy

DEMONSTRATIONS = 24
WORDS = dict(zip(KNOWN_COLOURS, ("crimson", "emerald", "navy", "amber"), strict=True))
REMOUNTED = Mount((np.radians(20), 0, 0, 0, 0, 0))  # the base was turned under the arm


def each(*verbs: str) -> tuple[Task, ...]:
    return tuple(Task(verb, colour) for verb in verbs for colour in KNOWN_COLOURS)


@dataclass(frozen=True)
class Subject:
    """Something new to learn."""

    tasks: tuple[Task, ...]
    mount: Mount | None = None
    renamed: bool = False  # the colours are called by other words

    def told(self, text: str) -> str:
        return " ".join(WORDS.get(word, word) for word in text.split()) if self.renamed else text


SUBJECTS = {
    "hover": Subject(each("hover")),
    "push": Subject(each("push")),
    "sweep": Subject(each("sweep")),
    "remounted": Subject(each("touch", "lift"), mount=REMOUNTED),
    "purple": Subject((Task("touch", "purple"),)),
    "purple among others": Subject((Task("touch", "purple"), Task("touch", "purple"), *each("touch"))),
    "words": Subject(each("touch"), renamed=True),
}
STRATEGIES = {
    "expert": TuneConfig(strategy="expert", steps=450),
    "full": TuneConfig(strategy="full", steps=300, rate=3e-4),
    "progressive": TuneConfig(strategy="progressive", steps=450),
    "lora": TuneConfig(strategy="lora", steps=450, lora_rank=16),
}


def shown(subject: Subject, seed: int) -> Iterator[Samples]:
    """One successful demonstration after another."""
    world, attempt, count = World(mount=subject.mount), 20_000_000 + 100_000 * seed, 0
    while True:
        task = subject.tasks[count % len(subject.tasks)]
        demo = demonstrate(world, task, attempt, wide=False, perturb=False)
        attempt += 1
        if demo is not None:
            count += 1
            names = np.array([subject.told(task.instruction)] * len(demo.state))
            yield Samples(demo.images[:, None], demo.state, chunks(demo.action, 8), names)


def lessons(subject: Subject, seed: int, old: Samples) -> Lessons:
    source = shown(subject, seed)
    new = join([next(source) for _ in range(DEMONSTRATIONS)])
    kept, watched = split_frames(old)
    return Lessons(new=new, old=kept, new_held_out=join([next(source) for _ in range(4)]), old_held_out=watched)


def tuned(base: Policy, given: Lessons, config: TuneConfig) -> tuple[Policy, Trainer]:
    assert isinstance(base.engine, TorchEngine)
    trainer = Trainer(base.engine.model, base.transforms, base.spec, given, config)
    for _ in trainer.run():
        pass
    engine = TorchEngine(trainer.outcome.model.eval(), TorchOptions(device="cpu", dtype="fp32", threads=1))
    return Policy(Bundle.open(SHIPPED), engine, base.files, base.transforms), trainer


def tried(policy: Policy, subject: Subject, episodes: int, seed: int) -> dict[str, list[int]]:
    def rename(seen: list[Observation]) -> list[Observation]:
        return [replace(one, task=subject.told(one.task)) for one in seen]

    def of(tasks: tuple[Task, ...], blind: Callable[..., Any] | None, mount: Mount | None, part: int) -> list[int]:
        wins = 0
        for index, task in enumerate(tasks):
            at = 30_000_000 + 1_000_000 * seed + 100_000 * part + 1000 * index
            wins += rollout(policy, task, episodes, at, blind, mount).successes
        return [wins, episodes * len(tasks)]

    new = tuple(dict.fromkeys(subject.tasks))
    found = {"new": of(new * (4 // len(new) or 1), rename if subject.renamed else None, subject.mount, 0)}
    if subject.mount is None:  # the old mounting is gone
        found |= {verb: of(each(verb), None, None, 1 + number) for number, verb in enumerate(VERBS)}
    return found


def run(name: str, how: str, replay: float, seed: int, episodes: int) -> dict[str, Any]:
    bundle, subject = Bundle.open(SHIPPED), SUBJECTS[name]
    base, old = load_policy([bundle], threads=1), rehearsal_of([bundle])
    assert old is not None
    if how == "before":
        return {"scores": tried(base, subject, episodes, seed), "seconds": 0.0}
    started = time.process_time()
    config = replace(STRATEGIES[how], replay=replay, seed=seed, evaluate_every=90)
    policy, trainer = tuned(base, lessons(subject, seed, old), config)
    seconds = time.process_time() - started
    outcome = trainer.outcome
    return {
        "scores": tried(policy, subject, episodes, seed),
        "seconds": round(seconds, 1),
        "steps": outcome.steps,
        "stopped": outcome.stopped,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Pooled over seeds; with and without replay side by side."""
    pooled: dict[tuple[str, str], dict[float, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        pooled[(row["subject"], row["how"])][row["replay"]].append(row)
    parts = ("new", *VERBS)
    replays = sorted({row["replay"] for row in rows if row["how"] != "before"}, reverse=True)
    titles = [f"{part}; replay {replay:g}" for replay in replays for part in parts]
    lines = ["| new | strategy | seeds | " + " | ".join([*titles, "tuning, cpu-s"]) + " |"]
    lines.append("|-|-|-:|" + "-|" * len(titles) + "-:|")
    for (subject, how), by_replay in sorted(pooled.items(), key=lambda one: (one[0][0], one[0][1] != "before")):
        cells = []
        for replay in replays:
            members = by_replay.get(0.0 if how == "before" else replay, [])
            cells += [_cell([row["scores"].get(part) for row in members]) if members else "" for part in parts]
        count = max(len(members) for members in by_replay.values())
        seconds = float(np.mean([row["seconds"] for members in by_replay.values() for row in members]))
        lines.append(f"| {subject} | {how} | {count} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def _cell(scores: list[list[int] | None]) -> str:
    found = [score for score in scores if score]
    if not found:
        return "gone"
    wins, count = (sum(score[side] for score in found) for side in (0, 1))
    interval = binomtest(wins, count).proportion_ci(0.95, method="wilson")
    return f"{wins / count:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="results, a line of JSON for each run")
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS), choices=list(SUBJECTS))
    parser.add_argument("--strategies", nargs="+", default=["before", *STRATEGIES])
    parser.add_argument("--replays", nargs="+", type=float, default=[0.5, 0.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--episodes", type=int, default=25, help="of each task")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(row["subject"], row["how"], row["replay"], row["seed"]) for row in rows}
    wanted = [
        (subject, how, replay, seed)
        for seed in options.seeds
        for subject in options.subjects
        for how in options.strategies
        for replay in (options.replays if how != "before" else [0.0])
        if not options.table and (subject, how, replay, seed) not in done
    ]
    for subject, how, replay, seed in wanted:
        row = {"subject": subject, "how": how, "replay": replay, "seed": seed}
        row |= run(subject, how, replay, seed, options.episodes)
        rows.append(row)
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}; {options.episodes} episodes a task"
    )
    print(table(rows))


if __name__ == "__main__":
    main()
