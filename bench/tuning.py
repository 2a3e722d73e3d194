"""What a tuning step costs, by strategy: the shipped nano policy, 32 frames with 4 noise draws each; or a pi0 of middle
size, 2 frames.

    python bench/tuning.py [--rounds 10] [--steps 3] [--threads 1] [--out tuning.json]
    python bench/tuning.py --size middle --rounds 5 --steps 1      # 10 GB

The strategies take turns of a few steps in one process, so that a busy machine disturbs all alike; what is reported is
the median step, by the wall and by the process's own cpu, and its ratio to full tuning. Frames of nano are of its
rehearsal set, those of the middle size are noise. An evaluation at the end is not among the steps.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hotpolicy.finetune.lessons import Lessons
from hotpolicy.finetune.outcome import Progress
from hotpolicy.finetune.replay import rehearsal_of
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.finetune.trainer import Trainer
from hotpolicy.launch.nano import SHIPPED
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.engine.torch_weights import build_model, tensors_from_numpy
from hotpolicy.runtime.messages import RobotSpec
from hotpolicy.runtime.model.pi0 import Pi0
from hotpolicy.runtime.model.vla import Vla
from hotpolicy.runtime.transforms import Transforms
from hotpolicy.runtime.versions.chain import resolve

SUBJECTS = {
    "heads, cached prefixes": TuneConfig(strategy="heads"),
    "heads, computed prefixes": TuneConfig(strategy="heads", caching="off"),
    "expert, cached prefixes": TuneConfig(strategy="expert"),
    "expert, computed prefixes": TuneConfig(strategy="expert", caching="off"),
    "top-2": TuneConfig(strategy="top-2"),
    "full": TuneConfig(strategy="full"),
}


@dataclass(frozen=True)
class Size:
    model: Vla
    transforms: Transforms
    spec: RobotSpec
    lessons: Lessons
    batch: int
    warm: int  # steps of each strategy before any counts


def nano() -> Size:
    bundle = Bundle.open(SHIPPED)
    model = build_model(bundle.manifest.model, tensors_from_numpy(resolve([bundle])))
    samples = rehearsal_of([bundle])
    assert samples is not None
    return Size(model, Transforms.of_chain([bundle]), bundle.manifest.spec, Lessons(samples), batch=32, warm=3)


def middle() -> Size:
    from budget import FRAMES, MIDDLE, SPEC, TRANSFORMS, samples

    torch.manual_seed(0)
    model = Pi0(MIDDLE).requires_grad_(False)
    return Size(model, TRANSFORMS, SPEC, Lessons(samples(FRAMES)), batch=2, warm=1)


SIZES = {"nano": nano, "middle": middle}


def start(size: Size, config: TuneConfig, steps: int) -> tuple[Trainer, Iterator[Progress]]:
    """A run that has taken its first steps."""
    steps += size.warm + 1
    config = replace(config, steps=steps, evaluate_every=steps, batch=size.batch, replay=0.0)
    trainer = Trainer(size.model, size.transforms, size.spec, size.lessons, config)
    running = trainer.run()
    for _ in range(size.warm + 1):
        next(running)
    return trainer, running


def run(size: Size, draws: int, rounds: int, steps: int) -> dict[str, Any]:
    subjects = {name: start(size, replace(config, draws=draws), rounds * steps) for name, config in SUBJECTS.items()}
    wall: dict[str, list[float]] = {name: [] for name in subjects}
    cpu: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, (_, running) in subjects.items():
            for _ in range(steps):
                wall_before, cpu_before = time.monotonic(), time.process_time()
                next(running)
                wall[name].append((time.monotonic() - wall_before) * 1e3)
                cpu[name].append((time.process_time() - cpu_before) * 1e3)
    full = statistics.median(cpu["full"])
    return {
        name: {
            "wall_ms": statistics.median(wall[name]),
            "cpu_ms": statistics.median(cpu[name]),
            "fastest_cpu_ms": min(cpu[name]),
            "full_over_this": full / statistics.median(cpu[name]),
            "trained": sum(p.numel() for p in trainer.learner.model.parameters() if p.requires_grad),
            "cache_mb": trainer.cache_mb,
        }
        for name, (trainer, _) in subjects.items()
    }


def table(report: dict[str, Any]) -> str:
    lines = [
        "| | trained parameters | wall, ms | cpu, ms (fastest) | full / this | K/V cache, MB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, row in report.items():
        lines.append(
            f"| {name} | {row['trained']:,} | {row['wall_ms']:.0f} | {row['cpu_ms']:.0f} ({row['fastest_cpu_ms']:.0f}) "
            f"| {row['full_over_this']:.1f} | {row['cache_mb']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="nano")
    parser.add_argument("--draws", type=int, default=4, help="of noise and time per frame")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3, help="of each strategy in a round")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = run(SIZES[arguments.size](), arguments.draws, arguments.rounds, arguments.steps)
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    print(table(report))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
