"""`hotpolicy session`: demonstrate or correct, tune beside it, judge, swap, try, and again; the server serves on."""

from __future__ import annotations

import importlib.util
import sys
from collections import deque
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from hotpolicy.launch.options import Key, ServerKey


def session(
    place: Annotated[
        Path, typer.Argument(help="A session's YAML file, or its folder. A session goes on where it was.")
    ],
    task: Annotated[
        list[str] | None, typer.Option(help="Instruction; give it several times for several tasks, in turn.")
    ] = None,
    robot: Annotated[str | None, typer.Option(help="Robot profile. Default: virtual_so101.")] = None,
    teleop: Annotated[
        str | None,
        typer.Option(help="Who demonstrates: scripted, keyboard, gamepad, leader, a plug-in. Default: scripted."),
    ] = None,
    take_over: Annotated[
        str | None,
        typer.Option(help="Who may correct the policy while it acts: keyboard, gamepad, leader, a plug-in."),
    ] = None,
    collect: Annotated[
        list[str] | None,
        typer.Option(
            help="What is collected: demonstrate, or correct (the policy acts, corrections are kept); given twice: "
            "before and after a version of this session is live."
        ),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(envvar="HOTPOLICY_STORE", help="Folder of the policy versions. Default: policies.")
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(envvar="HOTPOLICY_CONTROL", help="The server's control socket. Default: tcp://127.0.0.1:5556."),
    ] = None,
    key: Key = None,
    server_key: ServerKey = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds in all, those of earlier runs included. Default: 1.")
    ] = None,
    episodes: Annotated[int | None, typer.Option(min=1, help="New demonstrations for each round. Default: 24.")] = None,
    tries: Annotated[
        int | None, typer.Option(min=0, help="Episodes by the policy after each round, over all tasks. Default: 8.")
    ] = None,
    baseline: Annotated[
        bool | None, typer.Option("--baseline/--no-baseline", help="Try the policy before the first round, too.")
    ] = None,
    auto: Annotated[
        bool | None,
        typer.Option("--auto/--ask", help="Make what passes the gate live, or ask by a key. Default: ask."),
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="What learns: see finetune --strategy; or auto. Default: expert.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps in each round, 32 frames each. Default: 350.")
    ] = None,
    fresh: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of new demonstrations from those not learned from yet. Default: 0.5."),
    ] = None,
    replay_from: Annotated[list[Path] | None, typer.Option(help="Dataset of old tasks to replay.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Torch threads of tuning. Default: 1.")] = None,
    trials: Annotated[
        int | None,
        typer.Option(min=0, help="Episodes of the gate's success check. Default: 20 with a virtual arm, else none."),
    ] = None,
    success: Annotated[
        float | None, typer.Option(help="Success rate the new tasks must reach in it. Default: 0.8.")
    ] = None,
    old_error: Annotated[
        float | None,
        typer.Option(
            min=1, help="Where old tasks are not tried, their held-out error may grow so many times. Default: 1.5."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of scenes and batches. Default: 0.")] = None,
) -> None:
    """Teach a robot in rounds. Demonstrations are recorded; as soon as there are enough new ones, the live version is
    tuned on them in a process of its own while more are recorded; what passes the gate is swapped into the running
    server between two episodes, by itself or when you say so, and tried. A killed session goes on with the same
    command."""
    from hotpolicy.finetune.recorder import Recorder
    from hotpolicy.launch.keys import client_keys
    from hotpolicy.launch.profile_file import load_profile
    from hotpolicy.launch.rig import Rig
    from hotpolicy.launch.sessions import file as session_file
    from hotpolicy.launch.sessions.background import Commands, Tuner
    from hotpolicy.launch.sessions.loop import Session
    from hotpolicy.launch.sessions.plan import read_plan
    from hotpolicy.launch.sessions.practice import Practice, legend
    from hotpolicy.launch.versions import connect, open_store

    given = {
        "tasks": tuple(task) if task else None, "robot": robot, "teleop": teleop, "take_over": take_over,
        "collect": tuple(collect) if collect else None,
        "store": store, "control": control, "key": key, "server_key": server_key,
        "rounds": rounds, "episodes": episodes, "tries": tries, "baseline": baseline, "seed": seed,
        "promote": None if auto is None else "auto" if auto else "ask",
        "tuning": {
            "strategy": strategy, "steps": steps, "fresh": fresh, "threads": threads,
            "replay_from": tuple(replay_from) if replay_from else None,
        },
        "gate": {"trials": trials, "success": success, "old_error": old_error},
    }  # fmt: skip
    plan = read_plan(place, given)
    profile = load_profile(plan.robot)
    if not (plan.key or plan.server_key):
        plan = replace(plan, key=profile.key, server_key=profile.server_key)
    known = client_keys(plan.key, plan.server_key)
    state = session_file.load(plan.folder)
    with connect(plan.control, plan.key, plan.server_key) as client:
        client.ping()  # fail now rather than after the demonstrations
    open_store(plan.store).live()
    plan.folder.mkdir(parents=True, exist_ok=True)
    if importlib.util.find_spec("matplotlib") is None:
        typer.echo("no plot of success: it needs matplotlib: pip install 'hotpolicy[report]'", err=True)
    with ExitStack() as opened:
        recorder = opened.enter_context(Recorder.open(plan.folder / "dataset", profile.spec))
        rig = opened.enter_context(Rig.open(profile))
        trying = plan.gate.trials if plan.gate.trials is not None else 20 if rig.world is not None else 0
        tuner = Tuner(plan, trying)
        opened.callback(tuner.stop)
        commands = opened.enter_context(closing(Commands(plan)))
        pressed: deque[str] = deque()
        meanings = {getattr(plan.keys, name): name for name in ("back", "live", "leave")}
        listening = {key: lambda name=name: pressed.append(name) for key, name in meanings.items()}
        practice = opened.enter_context(Practice(rig, recorder, plan, known, listening))
        if sys.stdin.isatty():
            for name, meaning in legend(plan):
                typer.echo(f"  {name:<10}  {meaning}", err=True)
        rig.arm.torque(True)
        Session(plan, state, recorder, practice, tuner, commands, pressed).run()
