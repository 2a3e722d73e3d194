"""Scripted demonstrations of hovering, recorded as a dataset straight from a World: what benchmarks tune on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hotpolicy.finetune.episodes import Episode
from hotpolicy.finetune.recorder import Recorder
from hotpolicy.robots.sim.demonstrations import demonstrate
from hotpolicy.robots.sim.tasks import KNOWN_COLOURS, Task
from hotpolicy.robots.sim.world import World
from hotpolicy.runtime.messages import RobotSpec


def record_hovering(folder: Path, spec: RobotSpec, episodes: int, scene: int = 0, colour: int = 0) -> Path:
    """`episodes` that succeed, in the scenes from this one on, the colours in turn from this one on."""
    world, kept = World(), 0
    with Recorder.open(folder, spec) as recorder:
        while kept < episodes:
            task = Task("hover", KNOWN_COLOURS[(colour + kept) % len(KNOWN_COLOURS)])
            demo = demonstrate(world, task, scene, wide=False, perturb=False)
            scene += 1
            if demo is None:
                continue
            kept, frames = kept + 1, len(demo.state)
            episode = Episode(
                task.instruction, {"front": demo.images}, demo.state, demo.action, demo.action,
                np.zeros(frames, bool), (None,) * frames, True,
            )  # fmt: skip
            recorder.begin(episode.task)
            for step in episode.steps():
                recorder.step(step)
            recorder.save(success=True)
    return folder
