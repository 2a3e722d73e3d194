"""How near the planner's memory is to what training really takes, at middle size on this machine's CPU.

    python bench/budget.py                   # about 15 minutes on two cores, 8 GB
    python bench/budget.py --strategies heads expert
    python bench/budget.py --strategies lora full --recompute
    python bench/budget.py --strategies expert --uncached

Each strategy is planned in one process and trained in another: some steps of a pi0 of 270 M parameters on frames of
noise, with held-out frames and patience, so that the best weights are kept. The peak is the kernel's own figure of the
process (VmHWM); a step is the median, of a strategy with stages the mean, without steps that were also evaluated.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from middle import middle

from hotpolicy.finetune.budget import Situation, available_bytes, plan, resident_bytes
from hotpolicy.finetune.frames import Frames
from hotpolicy.finetune.gauge import Gauge
from hotpolicy.finetune.keeper import Keeper
from hotpolicy.finetune.lessons import Lessons
from hotpolicy.finetune.samples import Samples
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.finetune.strategy import strategy
from hotpolicy.finetune.trainer import Trainer
from hotpolicy.runtime.messages import CameraSpec, Joint, RobotSpec
from hotpolicy.runtime.model.pi0 import Pi0
from hotpolicy.runtime.tokenizer import WordTokenizer
from hotpolicy.runtime.transforms import Normalise, Relative, Transforms

STRATEGIES = ("heads", "expert", "lora-expert", "lora", "top-4", "full", "progressive")
JOINTS, CAMERAS, FRAMES = 7, ("front", "wrist"), 12
MIDDLE = replace(middle(), action_dim=JOINTS)
SPEC = RobotSpec(
    tuple(Joint(f"joint_{n}.pos", "deg", -90, 90) for n in range(JOINTS)),
    tuple(CameraSpec(name, 224, 224) for name in CAMERAS),
    rate_hz=30,
)
TRANSFORMS = Transforms(
    cameras=CAMERAS,
    state=Normalise(np.zeros(JOINTS, np.float32), np.ones(JOINTS, np.float32)),
    action=Normalise(np.zeros((50, JOINTS), np.float32), np.ones((50, JOINTS), np.float32)),
    relative=Relative(np.zeros(JOINTS, bool)),
    tokenizer=WordTokenizer(8192, 16),
)


def samples(count: int) -> Samples:
    draw = np.random.default_rng(0)
    return Samples(
        images=draw.integers(0, 256, (count, len(CAMERAS), 224, 224, 3), np.uint8),
        state=draw.standard_normal((count, JOINTS), np.float32),
        actions=draw.standard_normal((count, 50, JOINTS), np.float32),
        tasks=np.array(["put the red cube into the box"] * count),
    )


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def planned(name: str, options: argparse.Namespace) -> dict[str, Any]:
    model, config, lessons = start(name, options)
    frames = Frames.encode(lessons.new, TRANSFORMS)
    loaded = resident_bytes()
    stages = strategy(name, model).stages
    costs = [Gauge(model, frames, config).measure(stage) for stage in stages]
    given = Situation(FRAMES, loaded, available_bytes(loaded))
    found = plan(costs, [stage.share for stage in stages], config, given)
    memory = found.memory
    return {
        "trained": found.trained,
        "bytes": memory.total,
        "step_s": found.step_s,
        "parts_mb": {part.name: round(getattr(memory, part.name) / 1e6) for part in fields(memory)},
    }


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    model, config, lessons = start(name, options)
    trainer = Trainer(model, TRANSFORMS, SPEC, lessons, config)
    Keeper.earned_next_stage = lambda keeper: True  # type: ignore[method-assign, assignment]  # noise teaches nobody
    times, last = [], 0.0
    for progress in trainer.run():
        if progress.evaluation is None:
            times.append(progress.seconds - last)
        last = progress.seconds
    typical = np.median if len(trainer.strategy.stages) == 1 else np.mean  # stages differ
    return {"bytes": peak_bytes(), "step_s": float(typical(times[1:]))}


def start(name: str, options: argparse.Namespace) -> tuple[Pi0, TuneConfig, Lessons]:
    torch.manual_seed(0)
    config = TuneConfig(
        strategy=name, steps=options.steps, batch=options.batch, draws=4, replay=0.0, patience=3,
        evaluate_every=max(2, options.steps // 2),
        recompute=options.recompute, caching="off" if options.uncached else "auto",
    )  # fmt: skip
    return Pi0(MIDDLE).requires_grad_(False), config, Lessons(new=samples(FRAMES), new_held_out=samples(2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--uncached", action="store_true", help="prefixes are computed at every step")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    if options.one:
        torch.set_num_threads(options.threads)
        what, name = options.one
        print(json.dumps({"planned": planned, "measured": measured}[what](name, options)))
        return
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    switches = [f"--{name}" for name in ("recompute", "uncached") if getattr(options, name)]
    words = " ".join((f"batch {options.batch}, {options.threads} threads", *switches))
    print(f"{machine}, load {os.getloadavg()[0]:.1f}; {words}")
    print("| strategy | trained | planned, MB | measured, MB | planned / measured | planned s/step | measured s/step |")
    print("|-|-:|-:|-:|-:|-:|-:|")
    for name in options.strategies:
        rows = []
        for what in ("planned", "measured"):
            command = [sys.executable, __file__, "--one", what, name]
            command += [f"--{key}={getattr(options, key)}" for key in ("steps", "batch", "threads")] + switches
            rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        guess, found = rows
        print(
            f"| {name} | {guess['trained']:,} | {guess['bytes'] / 1e6:.0f} | {found['bytes'] / 1e6:.0f} "
            f"| {guess['bytes'] / found['bytes']:.2f} | {guess['step_s']:.2f} | {found['step_s']:.2f} |",
            flush=True,
        )
        print(f"    {guess['parts_mb']}", file=sys.stderr)


if __name__ == "__main__":
    main()
