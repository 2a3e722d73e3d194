"""A session's loop: what is done at the robot, one episode after another, while the pipeline goes on beside it."""

from __future__ import annotations

import sys
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING

import typer

from hotpolicy.launch.sessions.events import Baseline, RolledBack, Tried
from hotpolicy.launch.sessions.journal import Journal
from hotpolicy.launch.sessions.pipeline import Pipeline
from hotpolicy.launch.sessions.state import Activity, State, activity, on_trial
from hotpolicy.runtime.errors import HotpolicyError

if TYPE_CHECKING:
    from hotpolicy.finetune.recorder import Recorder
    from hotpolicy.launch.sessions.background import Commands, Reply, Tuner
    from hotpolicy.launch.sessions.plan import SessionPlan
    from hotpolicy.launch.sessions.practice import Practice


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
        self.plan, self.recorder, self.practice, self.commands = plan, recorder, practice, commands
        self.journal = Journal(plan.folder, state)
        self.pipeline = Pipeline(plan, self.journal, tuner, commands)
        self._pressed = pressed
        self._going_back: Future[Reply] | None = None
        self._uncorrected = 0  # episodes in a row in which the version that is live needed nobody
        self._taught: list[str] = []  # versions that were live then

    def run(self) -> None:
        """Until all rounds are done, nothing is left to teach, or the operator stops."""
        plan, state = self.plan, self.journal.state
        if plan.baseline and not state.rounds and state.phase == "idle":
            self.journal.note(Baseline(self.commands.live()))
        while True:
            self._attend()
            doing = self._activity()
            if doing == "done":
                return
            if doing == "wait" and self._nobody_answers():
                asked = self.pipeline.asked
                typer.echo(
                    f"{asked} waits for a decision, and there is no terminal for it: run the same command with "
                    f"--auto, or `hotpolicy swap {asked}` and the same command"
                )
                return
            if not self._do(doing):
                typer.echo("stopped by the operator; run the same command to go on")
                return

    def _activity(self) -> Activity:
        plan, state = self.plan, self.journal.state
        doing = activity(state, len(self.recorder), rounds=plan.rounds, episodes=plan.episodes, tries=plan.tries)
        if state.taught != self._taught:  # another is live: it may need some
            self._taught, self._uncorrected = state.taught, 0
        if doing != "collect":
            return doing
        taught = len(state.taught)
        if state.phase != "idle" and plan.collecting(taught) != plan.collecting(taught + 1):
            return "wait"  # what is being tuned decides what has to be collected
        if self._uncorrected < plan.uncorrected:
            return doing
        if state.phase != "idle":  # and so may the one that is being tuned
            return "wait"
        typer.echo(f"{self._uncorrected} episodes in a row needed no correction: nothing is left to teach")
        return "done"

    @property
    def _collecting(self) -> str:
        return self.plan.collecting(len(self.journal.state.taught))

    def _do(self, doing: Activity) -> bool:
        """One episode, or a moment's wait. False when the operator has had enough."""
        match doing:
            case "wait":
                self.practice.wait(self._collecting)
                return True
            case "collect":
                return self._collect()
            case _:
                return self._try()

    def _collect(self) -> bool:
        if self._collecting == "demonstrate":
            return self.practice.demonstrate().end != "stop"
        before = len(self.recorder)
        report = self.practice.correct()
        if len(self.recorder) > before:
            self._uncorrected = 0
        elif report.kept:
            self._uncorrected += 1
        return report.end != "stop"

    def _try(self) -> bool:
        entry = on_trial(self.journal.state, self.plan.tries)
        assert entry is not None
        report, corrected = self.practice.attempt(entry.tries)
        if report.end == "stop":
            return False
        if report.versions and report.versions != (entry.version,):  # the server went back by itself, or someone did
            typer.echo(f"{', '.join(report.versions)} acted, not {entry.version}: it is live no more")
            self.journal.note(RolledBack(entry.version))
        elif report.end != "again":
            self.journal.note(Tried(bool(report.success and not corrected)))
        if on_trial(self.journal.state, self.plan.tries) is None:
            self.journal.show(entry.number)
        return True

    def _attend(self) -> None:
        """What happened meanwhile, and what can be begun; never waits."""
        while self._pressed:
            key = self._pressed.popleft()
            if key == "back" and self._going_back is None:
                self._going_back = self.commands.roll_back()
            elif key in ("live", "leave"):
                self.pipeline.answer(key == "live")
        if self._going_back and self._going_back.done():
            self._gone_back(self._going_back)
        self.pipeline.attend(len(self.recorder))

    def _gone_back(self, future: Future[Reply]) -> None:
        self._going_back = None
        try:
            reply = future.result()
        except HotpolicyError as error:  # policy: what is live stays so, and the person has it in writing
            typer.echo(f"not rolled back: {error}")
            return
        typer.echo(f"rolled back: {reply['version']} is live, {reply['before']} is not")
        self.journal.note(RolledBack(reply["before"]))
        rounds = self.journal.state.rounds
        self.journal.show(next((entry.number for entry in rounds if entry.version == reply["before"]), None))

    def _nobody_answers(self) -> bool:
        return self.journal.state.phase == "asking" and self.plan.promote == "ask" and not sys.stdin.isatty()
