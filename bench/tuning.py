"""What a tuning step costs, by strategy: the shipped nano policy, 32 frames with 4 noise draws each.

    python bench/tuning.py [--rounds 10] [--steps 3] [--threads 1] [--out tuning.json]

The strategies take turns of a few steps in one process, so that a busy machine disturbs all alike; what is reported is
the median step, by the wall and by the process's own cpu, and its ratio to full tuning. Frames are the rehearsal set's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hotpolicy.finetune.lessons import Lessons
from hotpolicy.finetune.replay import rehearsal_of
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.finetune.trainer import Progress, Trainer
from hotpolicy.launch.nano import SHIPPED
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.chain import resolve
from hotpolicy.runtime.engine.torch_weights import build_model, tensors_from_numpy
from hotpolicy.runtime.transforms import Transforms

SUBJECTS = {
    "head-only, cached prefixes": TuneConfig(strategy="expert"),
    "head-only, computed prefixes": TuneConfig(strategy="expert", caching="off"),
    "top-2": TuneConfig(strategy="top-2"),
    "full": TuneConfig(strategy="full"),
}
WARM = 3  # steps of each before any counts


def start(config: TuneConfig, steps: int) -> tuple[Trainer, Iterator[Progress]]:
    """A run that has taken its first steps."""
    bundle = Bundle.open(SHIPPED)
    model = build_model(bundle.manifest.model, tensors_from_numpy(resolve([bundle])))
    samples = rehearsal_of([bundle])
    assert samples is not None
    config = replace(config, steps=steps + WARM + 1, evaluate_every=steps + WARM + 1, replay=0.0)
    transforms = Transforms.of_chain([bundle])
    trainer = Trainer(model, transforms, bundle.manifest.spec, Lessons(samples), config)
    running = trainer.run()
    for _ in range(WARM + 1):
        next(running)
    return trainer, running


def run(rounds: int, steps: int) -> dict[str, Any]:
    subjects = {name: start(config, rounds * steps) for name, config in SUBJECTS.items()}
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
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3, help="of each strategy in a round")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = run(arguments.rounds, arguments.steps)
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    print(table(report))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
