"""`hotpolicy session`: show, tune, judge, swap, again and again, while the server goes on serving."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from hotpolicy.launch.options import CONTROL, ROBOT, STORE, Control, LongestS, Release, Robot, Seed, StoreFolder, Task
from hotpolicy.launch.record import LINGER, Teleop, operator
from hotpolicy.runtime.errors import TuningError

REFUSED = 2  # exit code of a tuning run that its gate, or its input, stopped


def session(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder that grows with every round.")],
    task: Task,
    robot: Robot = ROBOT,
    teleop: Teleop = "scripted",
    episodes: Annotated[int, typer.Option(min=1, help="Demonstrations per round.")] = 8,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds. Default: until you stop it (Ctrl-C).")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps per round, 32 frames each.")] = 350,
    strategy: Annotated[str, typer.Option(help="What learns: heads, expert, top-N, full or progressive.")] = "expert",
    trials: Annotated[int, typer.Option(min=0, help="Episodes of the gate's success check; 0: none.")] = 20,
    store: StoreFolder = STORE,
    control: Control = CONTROL,
    seed: Seed = 0,
    longest_s: LongestS = None,
    release: Release = False,
) -> None:
    """Repeat: record demonstrations, tune the live version on all of them, and swap it in when it passes the gate.

    The server has to run on the same store. A round that is refused changes nothing; the next has more to learn from.
    """
    from hotpolicy.launch.rig import Rig
    from hotpolicy.launch.run import drive
    from hotpolicy.launch.versions import connect
    from hotpolicy.robots.sources import OperatorSource

    with connect(control) as client:
        client.ping()  # before anybody demonstrates anything
    arguments = [
        str(dataset), "--store", str(store), "--steps", str(steps), "--strategy", strategy, "--trials", str(trials),
        "--publish", control,
    ]  # fmt: skip
    done = 0
    try:
        with Rig.open(robot) as rig:
            person = operator(rig, teleop)
            try:
                while rounds is None or done < rounds:
                    typer.echo(f"round {done + 1}: {episodes} demonstrations of {task!r}")
                    reports = drive(
                        rig, task, OperatorSource(person), episodes, seed, longest_s,
                        record=dataset, release=False, as_json=False, linger=LINGER,
                    )  # fmt: skip
                    if reports[-1].end == "stop":
                        break
                    seed += len(reports)
                    _tune(arguments, seed=done)
                    done += 1
            finally:
                person.close()
                if release:
                    rig.arm.torque(False)
    except KeyboardInterrupt:
        typer.echo("stopped")
    typer.echo(f"{done} rounds; demonstrations in {dataset}")


def _tune(arguments: list[str], seed: int) -> None:
    """`hotpolicy finetune` in a process of its own; what it says appears here. Raises TuningError when it crashed."""
    command = [sys.executable, "-m", "hotpolicy.launch.cli", "finetune", *arguments, "--seed", str(seed)]
    sys.stdout.flush()
    code = subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode
    if code not in (0, REFUSED):
        raise TuningError(f"tuning ended with exit code {code}; the live version is untouched")
    if code == REFUSED:
        typer.echo("nothing was swapped; the live version is untouched")
