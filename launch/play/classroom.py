"""Demonstrations for the demo: recorded by a script, or by a person at this terminal, on one rig."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.recorder import Recorder
from hotpolicy.launch.play.story import Story
from hotpolicy.launch.rig import Rig
from hotpolicy.launch.teleop import LINGER, collect
from hotpolicy.robots.feed import Feed
from hotpolicy.robots.sim.tasks import Task
from hotpolicy.robots.sources import OperatorSource
from hotpolicy.robots.teleop.scripted import ScriptedOperator

DEMONSTRATIONS = 24


def demonstrate(rig: Rig, folder: Path, tasks: Sequence[Task], seed: int, story: Story, by_hand: bool = False) -> int:
    """Record the tasks in turn; how many episodes there are to learn from. A script's dataset is made anew, a
    person's is gone on with: nobody's work is thrown away."""
    if not by_hand:
        shutil.rmtree(folder, ignore_errors=True)
    with Recorder.open(folder, rig.profile.spec) as recorder:
        if by_hand:
            collect(rig, recorder, "keyboard", [task.instruction for task in tasks], DEMONSTRATIONS, seed)
        else:
            _by_script(rig, recorder, tasks, seed, story)
    return sum(episode.success is not False for episode in Dataset.open(folder).episodes)


def _by_script(rig: Rig, recorder: Recorder, tasks: Sequence[Task], seed: int, story: Story) -> None:
    assert rig.world is not None
    feed, operator = Feed(recorder, when_full="wait"), ScriptedOperator(rig.world)
    good = 0  # a failure is recorded as one, and nobody learns from it
    with story.bar("episodes", DEMONSTRATIONS) as advance:
        while good < DEMONSTRATIONS:
            task = tasks[good % len(tasks)].instruction
            rig.set_scene(task, seed)
            seed += 1
            good += bool(rig.episode(task, OperatorSource(operator), [feed], linger=LINGER).success)
            advance(to=good)
    feed.close()
