"""What corrections are worth, beside demonstrations and beside training on: of a policy that knows its task by half.

    python bench/corrections.py --out corrections.jsonl              # push, two seeds: 7 minutes on a core
    python bench/corrections.py --out corrections.jsonl --table      # only print what is there

The shipped nano policy is tuned on a few scripted demonstrations of a task it does not know. That version is taught on,
with as many episodes more and as many steps: by demonstrations; by corrections of a script that takes over where the
policy goes wrong, of which only those are learned from (HG-DAgger, arXiv 1810.02890); by demonstrations that keep the
person's hands busy for as many frames as the corrections did; and by steps alone, with nothing new.

Recorder, lessons, replay and trainer are the ones in use; sockets and servos are left out. What the person does is
counted in frames, 10 a second. A run that is in the file already is not done again. Intervals are Wilson's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from forgetting import each
from person import Work, corrected, demonstrated

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.gate import Bounds
from hotpolicy.finetune.lessons import Span
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.launch.job import Job
from hotpolicy.launch.machine import describe_machine
from hotpolicy.launch.nano import SHIPPED, VERBS
from hotpolicy.launch.rollouts import rollout
from hotpolicy.launch.success import interval
from hotpolicy.launch.tuning import tune
from hotpolicy.launch.versions import open_store
from hotpolicy.runtime.policy import Policy, load_policy
from hotpolicy.runtime.store import Store

WAYS = ("demonstrations", "corrections", "demonstrations as long", "steps alone")
HALF = "half-taught"
SCENES = 40_000_000  # from here on, for what is recorded; what is tried is elsewhere


def taught(store: Store, base: str, folder: Path, config: TuneConfig, since: int = 0) -> str:
    """The version that comes of a job as a session gives it, but for the gate."""
    job = Job(store.root, base, (folder,), config, 1, False, 0, Bounds(), 0.0, span=Span(None, since))
    *_, sealed = tune(job)
    return str(store.add(Path(sealed["folder"])))


def tried(policy: Policy, verb: str, scenes: int, seed: int) -> dict[str, list[int]]:
    """Successes and scenes of the new verb and of each old one, over four colours."""
    found = {}
    for part, (name, tasks) in enumerate((("new", each(verb)), *((old, each(old)) for old in VERBS))):
        at = 50_000_000 + 1_000_000 * seed + 100_000 * part
        count = scenes // len(tasks)
        scores = [rollout(policy, task, count, at + 1000 * index) for index, task in enumerate(tasks)]
        found[name] = [sum(score.successes for score in scores), count * len(tasks)]
    return found


class Pupil:
    """A version that knows a task by half, and all ways to go on from it."""

    def __init__(self, verb: str, seed: int, options: argparse.Namespace, root: Path):
        self.tasks, self.verb, self.seed, self.options, self.root = each(verb), verb, seed, options, root
        self.scene = SCENES + 1_000_000 * seed
        self.store = open_store(root / "store")
        self.base = self.store.add(SHIPPED)

    def half(self) -> dict[str, Any]:
        """A version that knows the task by half. It has to be made before the others."""
        few = self.options.few
        work = demonstrated(self.root / "half", self.tasks, self.scene, lambda kept, _: kept == few)
        config = TuneConfig(steps=self.options.first_steps, evaluate_every=1000, seed=self.seed)
        self.version = taught(self.store, self.base, self.root / "half", config)
        return self.row(HALF, work, config.steps)

    def on(self, way: str, long: int = 0) -> dict[str, Any]:
        """`long`: frames that the corrections took."""
        folder = self.root / way.replace(" ", "-")
        shutil.copytree(self.root / "half", folder)
        more, work, scene = self.options.more, Work(), self.scene + 500_000
        if way == "demonstrations":
            work = demonstrated(folder, self.tasks, scene, lambda kept, _: kept == more)
        elif way == "demonstrations as long":
            work = demonstrated(folder, self.tasks, scene, lambda _, work: work.acted >= long)
        elif way == "corrections":
            work = corrected(folder, self.tasks, scene, more, self.policy(self.version))
        config = TuneConfig(steps=self.options.steps, evaluate_every=1000, seed=self.seed + 1)
        fresh = len(Dataset.open(folder)) > self.options.few
        version = taught(self.store, self.version, folder, config, self.options.few if fresh else 0)
        return self.row(way, work, config.steps, version)

    def row(self, way: str, work: Work, steps: int, version: str | None = None) -> dict[str, Any]:
        scores = tried(self.policy(version or self.version), self.verb, self.options.scenes, self.seed)
        return {"way": way, "steps": steps, "work": asdict(work), "scores": scores}

    def policy(self, version: str) -> Policy:
        return load_policy(self.store.chain(version), threads=1)


def table(rows: list[dict[str, Any]]) -> str:
    """Pooled over seeds."""
    pooled: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        pooled[(row["verb"], row["way"])].append(row)
    parts = ("new", *VERBS)
    lines = [
        f"| task | way | seeds | {' | '.join(parts)} | episodes | frames acted | watched | ended badly |",
        "|-|-|-:|-|-|-|-:|-:|-:|-:|",
    ]
    for (verb, way), members in sorted(pooled.items(), key=lambda one: (one[0][0], (HALF, *WAYS).index(one[0][1]))):
        cells = [rate([row["scores"][part] for row in members]) for part in parts]
        cells += [str(sum(row["work"][name] for row in members)) for name in ("episodes", "acted", "watched", "failed")]
        lines.append(f"| {verb} | {way} | {len(members)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rate(scores: list[list[int]]) -> str:
    wins, count = (sum(score[side] for score in scores) for side in (0, 1))
    low, high = interval({"successes": wins, "episodes": count})
    return f"{wins / count:.2f} ({low:.2f} to {high:.2f})"


def study(seed: int, options: argparse.Namespace, known: list[dict[str, Any]], root: Path) -> Iterator[dict[str, Any]]:
    """The rows that are missing."""
    done = {row["way"]: row for row in known}
    missing = [way for way in options.ways if way not in done]
    if not missing and HALF in done:
        return
    pupil, started = Pupil(options.verb, seed, options, root), time.process_time()
    for way in (HALF, *missing):
        long = done["corrections"]["work"]["acted"] if "corrections" in done else 0
        row = pupil.half() if way == HALF else pupil.on(way, long)
        seconds, started = time.process_time() - started, time.process_time()
        if way not in done:
            done[way] = {"verb": options.verb, "seed": seed, **row, "cpu_s": round(seconds, 1)}
            yield done[way]


def _of(row: Mapping[str, Any], verb: str, seed: int) -> bool:
    return bool((row["verb"], row["seed"]) == (verb, seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="results, a line of JSON for each run")
    parser.add_argument("--verb", default="push", help="the new task, of each of four colours")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--few", type=int, default=4, help="demonstrations of the half-taught version")
    parser.add_argument("--first-steps", type=int, default=150, help="and its optimiser steps")
    parser.add_argument("--more", type=int, default=12, help="episodes after that")
    parser.add_argument("--steps", type=int, default=350, help="optimiser steps after that")
    parser.add_argument("--scenes", type=int, default=48, help="of the new task, and of each old one")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS)
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    for seed in [] if options.table else options.seeds:
        with tempfile.TemporaryDirectory() as root:
            for row in study(seed, options, [row for row in rows if _of(row, options.verb, seed)], Path(root)):
                rows.append(row)
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
    print(describe_machine())
    print(table(rows))


if __name__ == "__main__":
    main()
