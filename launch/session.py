"""`hotpolicy session`: demonstrate, tune, judge, publish, try, and again; the server serves all the while."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotpolicy.launch.options import CONTROL, ROBOT, STORE, Control, Key, Robot, Seed, ServerKey, StoreFolder
from hotpolicy.launch.teleop import Teleop, collect
from hotpolicy.runtime.errors import ConfigError

if TYPE_CHECKING:
    from hotpolicy.finetune.recorder import Recorder
    from hotpolicy.launch.rig import Rig
    from hotpolicy.runtime.keys import ClientKeys
    from hotpolicy.runtime.messages import Step

FILE = "session.json"


@dataclass
class State:
    """What a session has done; kept in its folder, so that it goes on where it was after a kill."""

    rounds: int = 0  # finished: tuned and judged
    published: list[str] = field(default_factory=list)  # versions that went live, oldest first
    refused: list[str] = field(default_factory=list)  # candidates the gate did not pass
    tried: list[list[int]] = field(default_factory=list)  # after each round: successes and episodes of the policy

    @classmethod
    def load(cls, folder: Path) -> State:
        """Raises ConfigError when the file is damaged."""
        path = folder / FILE
        if not path.exists():
            return cls()
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path}: expected a session's state: {error}") from error

    def save(self, folder: Path) -> None:
        from hotpolicy.runtime import durable

        durable.replace_file(folder / FILE, json.dumps(asdict(self), indent=2).encode())


def session(
    folder: Annotated[Path, typer.Argument(help="The session's folder: dataset and state. Goes on where it was.")],
    task: Annotated[list[str], typer.Option(help="Instruction; give it several times for several tasks, in turn.")],
    robot: Robot = ROBOT,
    teleop: Teleop = "scripted",
    store: StoreFolder = STORE,
    control: Control = CONTROL,
    key: Key = None,
    server_key: ServerKey = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in all, those of earlier runs included.")] = 1,
    episodes: Annotated[int, typer.Option(min=1, help="Demonstrations in each round.")] = 24,
    tries: Annotated[int, typer.Option(min=0, help="Episodes by the policy after each round, over all tasks.")] = 8,
    strategy: Annotated[str, typer.Option(help="What learns: heads, expert, top-N, full or progressive.")] = "expert",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps in each round, 32 frames each.")] = 350,
    take_over: Annotated[
        str | None,
        typer.Option(
            help="Who may correct the policy while it is tried: keyboard, gamepad, leader, a plug-in. It learns of it."
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(min=0, help="Episodes of the gate's success check. Default: 20 with a virtual arm, else none."),
    ] = None,
    success: Annotated[float, typer.Option(help="Success rate the new tasks must reach in it, 0 to 1.")] = 0.8,
    old_error: Annotated[
        float, typer.Option(min=1, help="Where old tasks are not tried, their held-out error may grow so many times.")
    ] = 1.5,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads of tuning.")] = 1,
    seed: Seed = 0,
) -> None:
    """Teach a robot in rounds. Each round: demonstrations are recorded, the live version is tuned on all of them in a
    process of its own, judged, and, if it passes, swapped into the running server; then the policy is tried."""
    from hotpolicy.finetune.recorder import Recorder
    from hotpolicy.launch.keys import client_keys
    from hotpolicy.launch.profile import load_profile
    from hotpolicy.launch.rig import Rig
    from hotpolicy.launch.versions import connect, open_store

    state, profile = State.load(folder), load_profile(robot)
    key, server_key = (key, server_key) if key or server_key else (profile.key, profile.server_key)
    known = client_keys(key, server_key)
    with connect(control, key, server_key) as client:
        client.ping()  # fail now rather than after the demonstrations
    open_store(store).live()
    folder.mkdir(parents=True, exist_ok=True)
    tuning = [
        "--store", str(store), "--strategy", strategy, "--steps", str(steps),
        "--success", str(success), "--old-error", str(old_error), "--threads", str(threads), "--publish", control,
    ]  # fmt: skip
    if known:
        tuning += ["--key", str(key), "--server-key", str(server_key)]
    with Rig.open(profile) as rig:
        checks = trials if trials is not None else 20 if rig.world is not None else 0
        tuning += ["--trials", str(checks)]
        rig.arm.torque(True)
        while state.rounds < rounds:
            number = state.rounds + 1
            with Recorder.open(folder / "dataset", rig.profile.spec) as recorder:
                enough = collect(rig, recorder, teleop, task, episodes * number, seed + 1000 * len(recorder))
            if not enough:
                typer.echo(f"stopped by the operator in round {number}; run the same command to go on")
                return
            verdict = learn(folder, tuning, seed + number)
            (state.published if verdict["passed"] else state.refused).append(verdict["version"])
            with Recorder.open(folder / "dataset", rig.profile.spec) as recorder:
                corrections = Corrections(recorder)
                state.tried.append(attempt(rig, task, tries, seed + 100_000 * number, take_over, corrections, known))
            state.rounds = number
            state.save(folder)
            word = "published" if verdict["passed"] else f"refused: {'; '.join(verdict['reasons'])}"
            wins, count = state.tried[-1]
            typer.echo(f"round {number}: {verdict['version']} {word}; the policy was tried: {wins} of {count}")


def learn(folder: Path, options: Sequence[str], seed: int) -> dict[str, Any]:
    """Tune, judge and publish in a process of its own; what it said at the end."""
    from hotpolicy.launch.finetune import draw
    from hotpolicy.launch.lesson import follow
    from hotpolicy.launch.processes import Child

    arguments = ["finetune", str(folder / "dataset"), *options, "--seed", str(seed), "--json"]
    with Child("tuning", arguments, folder / "tuning.log") as child:
        events: Iterator[dict[str, Any]] = draw(follow(child))
        sealed = [event for event in events if event["event"] == "sealed"][-1]
        if child.wait(60) not in (0, 2):
            raise ConfigError(f"tuning ended badly: {child.last_words()}")
    return sealed


class Corrections:
    """Records the episodes of a policy in which a person took over, and no other. A robots.feed.Subscriber."""

    def __init__(self, recorder: Recorder):
        self._recorder = recorder
        self.corrected = False  # the last episode

    def begin(self, task: str) -> None:
        self.corrected = False
        self._recorder.begin(task)

    def step(self, step: Step) -> None:
        self.corrected |= step.intervention
        self._recorder.step(step)

    def save(self, success: bool | None = None) -> None:
        if self.corrected:
            self._recorder.save(success)
        else:
            self._recorder.discard()

    def discard(self) -> None:
        self._recorder.discard()


def attempt(
    rig: Rig,
    tasks: Sequence[str],
    tries: int,
    seed: int,
    take_over: str | None,
    corrections: Corrections,
    keys: ClientKeys | None = None,
) -> list[int]:
    """[successes, episodes] of the served policy; one that had to be corrected is none, and one that nobody can judge
    neither. With `take_over` corrections are recorded, and escape ends the tries."""
    from hotpolicy.launch.run import policy_source, taking_over
    from hotpolicy.robots.feed import Feed
    from hotpolicy.runtime.client import PolicyClient

    wins = done = 0
    with PolicyClient(rig.profile.endpoints, keys=keys) as client, ExitStack() as open_feeds:
        source = open_feeds.enter_context(taking_over(rig, policy_source(rig, client, replan=4), take_over))
        feeds = [Feed(corrections, when_full="wait" if rig.stepped else "fail")] if take_over else []
        for feed in feeds:
            open_feeds.callback(feed.close)
        for index in range(tries):
            instruction = tasks[index % len(tasks)]
            rig.set_scene(instruction, seed + index)
            report = rig.episode(instruction, source, feeds)
            if report.end == "stop":
                break
            wins, done = wins + bool(report.success and not corrections.corrected), done + 1
    return [wins, done]
