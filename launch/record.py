"""`hotpolicy record`: an operator shows how it is done, and every episode is safe on disk before the next begins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotpolicy.launch.options import ROBOT, AsJson, Episodes, LongestS, Release, Robot, Seed, Task
from hotpolicy.runtime.errors import ConfigError

if TYPE_CHECKING:
    from hotpolicy.launch.rig import Rig
    from hotpolicy.robots.robot import Operator

LINGER = 2  # ticks recorded after success: the end of a demonstration is to stand still there
TELEOP = ("scripted",)

Teleop = Annotated[str, typer.Option(help=f"Who acts: {', '.join(TELEOP)} (virtual arm only).")]


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
    from hotpolicy.launch.rig import Rig
    from hotpolicy.launch.run import drive
    from hotpolicy.robots.sources import OperatorSource

    with Rig.open(robot) as rig:
        person = operator(rig, teleop)
        try:
            drive(
                rig, task, OperatorSource(person), episodes, seed, longest_s,
                record=dataset, release=release, as_json=as_json, linger=LINGER,
            )  # fmt: skip
        finally:
            person.close()


def operator(rig: Rig, teleop: str) -> Operator:
    """Raises ConfigError for one that there is not, or not for this robot."""
    if teleop not in TELEOP:
        raise ConfigError(f"teleop: expected one of {', '.join(TELEOP)}, got {teleop!r}")
    if rig.world is None:
        raise ConfigError(f"teleop: scripted is for virtual arms, {rig.profile.name} is one of metal")
    from hotpolicy.robots.teleop.scripted import ScriptedOperator

    return ScriptedOperator(rig.world)
