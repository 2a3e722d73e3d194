"""`hotpolicy record`: an operator shows how it is done, and every episode is safe on disk before the next begins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hotpolicy.launch.options import ROBOT, AsJson, Episodes, LongestS, Release, Robot, Seed, Task
from hotpolicy.launch.teleop import BY_SIGHT, LINGER, Picture, Teleop, operator


def record(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder (LeRobotDataset v3.0), new or to go on with.")],
    task: Task,
    robot: Robot = ROBOT,
    teleop: Teleop = "scripted",
    episodes: Episodes = 10,
    seed: Seed = 0,
    longest_s: LongestS = None,
    release: Release = False,
    as_json: AsJson = False,
) -> None:
    """Record demonstrations. Each episode is sealed when it ends; a crash costs at most the one in progress."""
    from hotpolicy.launch.driving import drive
    from hotpolicy.launch.rig import Rig
    from hotpolicy.robots.sources import OperatorSource

    with Rig.open(robot) as rig:
        person = operator(rig, teleop)
        # A virtual arm cannot be looked at but through its camera.
        viewer = Picture(rig.profile.spec) if teleop in BY_SIGHT and rig.world is not None else None
        try:
            drive(
                rig, task, OperatorSource(person), episodes, seed, longest_s,
                record=dataset, release=release, as_json=as_json, linger=LINGER, viewer=viewer,
            )  # fmt: skip
        finally:
            person.close()
