"""`hotpolicy session`: demonstrate or correct, tune beside it, judge, swap, try, and again; the server serves on."""

from __future__ import annotations

import importlib.util
import sys
from collections import deque
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotpolicy.launch.options import Key, ServerKey
from hotpolicy.runtime.errors import HotpolicyError, TuningError

if TYPE_CHECKING:
    from hotpolicy.finetune.recorder import Recorder
    from hotpolicy.launch.background import Commands, Event, Reply, Tuner
    from hotpolicy.launch.practice import Practice
    from hotpolicy.launch.session_plan import SessionPlan
    from hotpolicy.launch.session_state import Event as Happening
    from hotpolicy.launch.session_state import State


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
        str | None,
        typer.Option(help="What is collected: demonstrate, or correct (the policy acts, corrections are kept)."),
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
    from hotpolicy.launch import session_state
    from hotpolicy.launch.background import Commands, Tuner
    from hotpolicy.launch.keys import client_keys
    from hotpolicy.launch.practice import Practice, legend
    from hotpolicy.launch.profile import load_profile
    from hotpolicy.launch.rig import Rig
    from hotpolicy.launch.session_plan import read_plan
    from hotpolicy.launch.versions import connect, open_store

    given = {
        "tasks": tuple(task) if task else None, "robot": robot, "teleop": teleop, "take_over": take_over,
        "collect": collect, "store": store, "control": control, "key": key, "server_key": server_key,
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
    state = session_state.load(plan.folder)
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


class Session:
    """Ties the state to what makes it change: `run` is the loop. Between two episodes it attends to the job and to the
    keys; neither is waited for while there is something to do at the robot."""

    def __init__(
        self,
        plan: SessionPlan,
        state: State,
        recorder: Recorder,
        practice: Practice,
        tuner: Tuner,
        commands: Commands,
        pressed: deque[str],
    ):
        self.plan, self.state, self.recorder = plan, state, recorder
        self.practice, self.tuner, self.commands = practice, tuner, commands
        self._pressed = pressed
        self._publishing: Future[str] | None = None
        self._going_back: Future[Reply] | None = None
        self._asked: str | None = None  # the version a person was asked about

    def run(self) -> None:
        """Until all rounds are done, or the operator stops."""
        from hotpolicy.launch import session_state

        plan = self.plan
        if plan.baseline and not self.state.rounds and self.state.phase == "idle":
            self._note(session_state.Baseline(self.commands.live()))
        while True:
            self._attend()
            doing = session_state.activity(
                self.state, len(self.recorder), rounds=plan.rounds, episodes=plan.episodes, tries=plan.tries
            )
            if doing == "done":
                return
            if doing == "wait" and self._nobody_answers():
                typer.echo(
                    f"{self._asked} waits for a decision, and there is no terminal for it: run the same command with "
                    f"--auto, or `hotpolicy swap {self._asked}` and the same command"
                )
                return
            if not self._do(doing):
                typer.echo("stopped by the operator; run the same command to go on")
                return

    def _do(self, doing: str) -> bool:
        """One episode, or a moment's wait. False when the operator has had enough."""
        from hotpolicy.launch import session_state

        if doing == "wait":
            self.practice.wait()
            return True
        if doing == "collect":
            correcting = self.plan.collect == "correct"
            return (self.practice.correct() if correcting else self.practice.demonstrate()).end != "stop"
        entry = session_state.on_trial(self.state, self.plan.tries)
        assert entry is not None
        report, corrected = self.practice.attempt(entry.tries)
        if report.end == "stop":
            return False
        if report.versions and report.versions != (entry.version,):  # the server went back by itself, or someone did
            typer.echo(f"{', '.join(report.versions)} acted, not {entry.version}: it is live no more")
            self._note(session_state.RolledBack(entry.version))
        elif report.end != "again":
            self._note(session_state.Tried(bool(report.success and not corrected)))
        if session_state.on_trial(self.state, self.plan.tries) is None:
            self._show(entry.number)
        return True

    def _attend(self) -> None:
        """What happened meanwhile, and what can be begun; never waits."""

        while self._pressed:
            self._obey(self._pressed.popleft())
        if self._going_back and self._going_back.done():
            self._gone_back(self._going_back)
        before = None
        while self.state != before:  # one thing leads to the next
            before = self.state
            match self.state.phase:
                case "idle":
                    self._begin()
                case "tuning":
                    self._follow()
                case "asking":
                    self._ask()
                case "publishing":
                    self._publish()

    def _begin(self) -> None:
        from hotpolicy.launch import session_state

        plan, sealed = self.plan, len(self.recorder)
        if not session_state.may_begin(self.state, sealed, rounds=plan.rounds, episodes=plan.episodes):
            return
        self._note(session_state.Begin(self.commands.live(), sealed, plan.seed + self.state.begun + 1))
        assert self.state.job is not None
        typer.echo(f"tuning {self.state.job.base} on {sealed} episodes, {sealed - self.state.job.since} of them fresh")

    def _follow(self) -> None:
        assert self.state.job is not None
        if not self.tuner.running:
            self.tuner.start(self.state.job)
        for event in self.tuner.poll():
            self._told(event)

    def _told(self, event: Event) -> None:
        """By the tuning process."""
        from hotpolicy.launch import session_state
        from hotpolicy.launch.background import PATIENCE
        from hotpolicy.launch.finetune import held_out_line

        match event["event"]:
            case "step" if event["held_out"]:
                typer.echo(f"  {held_out_line(event)}")
            case "resumed":
                typer.echo(f"  goes on after step {event['step']}, where an earlier process was ended")
            case "lost":
                self._note(session_state.Lost())
                if self.state.lost >= PATIENCE:
                    raise TuningError(f"tuning was killed {self.state.lost} times: {event['words']}")
                typer.echo("  the tuning process was killed; it is started again")
            case "sealed":
                before, after = _errors(Path(event["folder"]))
                passed, reasons = bool(event["passed"]), tuple(event["reasons"])
                self._note(session_state.Judged(event["version"], passed, reasons, before, after))
                if not passed:
                    self._show(self.state.rounds[-1].number)

    def _ask(self) -> None:
        """Once; the answer is a key, or the version becoming live by another's hand."""
        from hotpolicy.launch import session_state

        entry = self.state.rounds[-1]
        if self.plan.promote == "auto":
            self._note(session_state.Promote())
        elif self._asked != entry.version:
            self._asked = entry.version
            if self.commands.live() == entry.version:  # somebody has answered before this process was started
                self._note(session_state.Promote())
                return
            keys = self.plan.keys
            typer.echo(f"{entry.version} passed the gate: {keys.live} makes it live, {keys.leave} leaves it")

    def _publish(self) -> None:
        from hotpolicy.launch import session_state

        entry = self.state.rounds[-1]
        trial = session_state.on_trial(self.state, self.plan.tries)
        if self._publishing is None:
            if trial is not None:  # its tries are of one version
                return
            base = _base_of(self.plan.store, entry.version)
            self._publishing = self.commands.publish(entry.version, base, f"{self.state.name}-{entry.number}")
        elif self._publishing.done():
            reason, self._publishing = self._publishing.result(), None
            self._note(session_state.NotLive(reason) if reason else session_state.Live())
            if reason or not self.plan.tries:
                self._show(entry.number)

    def _obey(self, key: str) -> None:
        from hotpolicy.launch import session_state

        if key == "back" and self._going_back is None:
            self._going_back = self.commands.roll_back()
        elif self.state.phase == "asking" and self._asked is not None and key in ("live", "leave"):
            self._note(session_state.Promote() if key == "live" else session_state.Leave())
            if key == "leave":
                self._show(self.state.rounds[-1].number)

    def _gone_back(self, future: Future[Reply]) -> None:
        from hotpolicy.launch import session_state

        self._going_back = None
        try:
            reply = future.result()
        except HotpolicyError as error:  # policy: what is live stays so, and the person has it in writing
            typer.echo(f"not rolled back: {error}")
            return
        typer.echo(f"rolled back: {reply['version']} is live, {reply['before']} is not")
        self._note(session_state.RolledBack(reply["before"]))
        self._show(next((entry.number for entry in self.state.rounds if entry.version == reply["before"]), None))

    def _nobody_answers(self) -> bool:
        return self.state.phase == "asking" and self.plan.promote == "ask" and not sys.stdin.isatty()

    def _note(self, happening: Happening) -> None:
        """It happened: on disk before anything follows from it."""
        from hotpolicy.launch import session_state

        self.state = session_state.advance(self.state, happening)
        session_state.save(self.plan.folder, self.state)

    def _show(self, number: int | None) -> None:
        from hotpolicy.launch.progress import save_plot, show_round

        for entry in self.state.rounds:
            if entry.number == number:
                show_round(entry)
        if importlib.util.find_spec("matplotlib") is not None:
            save_plot(self.plan.folder, self.state.rounds)


def _base_of(store: Path, version: str) -> str | None:
    from hotpolicy.launch.versions import open_store

    return open_store(store).open(version).manifest.parent


def _errors(folder: Path) -> tuple[float | None, float | None]:
    """Held-out action error of the new tasks before and after, deg, the mean over tasks; None where nothing was
    held out."""
    from hotpolicy.launch.finetune import mean_over_tasks
    from hotpolicy.runtime.bundle import Bundle

    verdict = Bundle.open(folder).manifest.verdict or {}
    sides = (verdict.get("figures") or {}).get("held_out") or {}
    found = [sides[when].get("new") for when in ("before", "after") if when in sides]
    before, after = (mean_over_tasks(figures, "error_deg") if figures else None for figures in (*found, None, None)[:2])
    return before, after
