"""In a session, from enough demonstrations to a version that is live: tuning is begun and followed, a person asked, the
version swapped in. Nobody waits for any of it."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import typer

from hotpolicy.launch.sessions.background import PATIENCE, Commands, Event, Tuner
from hotpolicy.launch.sessions.events import Begin, Judged, Leave, Live, Lost, NotLive, Promote
from hotpolicy.launch.sessions.journal import Journal
from hotpolicy.launch.sessions.plan import SessionPlan
from hotpolicy.launch.sessions.state import may_begin, on_trial
from hotpolicy.launch.tuning_lines import held_out_line, mean_over_tasks
from hotpolicy.launch.versions import open_store
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.errors import TuningError


class Pipeline:
    def __init__(self, plan: SessionPlan, journal: Journal, tuner: Tuner, commands: Commands):
        self.plan, self._journal, self.tuner, self.commands = plan, journal, tuner, commands
        self._publishing: Future[str] | None = None
        self.asked: str | None = None  # the version a person was asked about

    def attend(self, sealed: int) -> None:
        """What happened meanwhile, and what can be begun with `sealed` demonstrations; never waits."""
        before = None
        while self._journal.state != before:  # one thing leads to the next
            before = self._journal.state
            match self._journal.state.phase:
                case "idle":
                    self._begin(sealed)
                case "tuning":
                    self._follow()
                case "asking":
                    self._ask()
                case "publishing":
                    self._publish()

    def answer(self, live: bool) -> None:
        """A person's: make the version live, or leave it. Without a question it means nothing."""
        if self._journal.state.phase != "asking" or self.asked is None:
            return
        self._journal.note(Promote() if live else Leave())
        if not live:
            self._journal.show(self._journal.state.rounds[-1].number)

    def _begin(self, sealed: int) -> None:
        plan = self.plan
        if not may_begin(self._journal.state, sealed, rounds=plan.rounds, episodes=plan.episodes):
            return
        self._journal.note(Begin(self.commands.live(), sealed, plan.seed + self._journal.state.begun + 1))
        job = self._journal.state.job
        assert job is not None
        typer.echo(f"tuning {job.base} on {sealed} episodes, {sealed - job.since} of them fresh")

    def _follow(self) -> None:
        assert self._journal.state.job is not None
        if not self.tuner.running:
            self.tuner.start(self._journal.state.job)
        for event in self.tuner.poll():
            self._told(event)

    def _told(self, event: Event) -> None:
        """By the tuning process."""
        match event["event"]:
            case "step" if event["held_out"]:
                typer.echo(f"  {held_out_line(event)}")
            case "resumed":
                typer.echo(f"  goes on after step {event['step']}, where an earlier process was ended")
            case "lost":
                self._journal.note(Lost())
                if self._journal.state.lost >= PATIENCE:
                    raise TuningError(f"tuning was killed {self._journal.state.lost} times: {event['words']}")
                typer.echo("  the tuning process was killed; it is started again")
            case "sealed":
                before, after = _errors(Path(event["folder"]))
                passed, reasons = bool(event["passed"]), tuple(event["reasons"])
                self._journal.note(Judged(event["version"], passed, reasons, before, after))
                if not passed:
                    self._journal.show(self._journal.state.rounds[-1].number)

    def _ask(self) -> None:
        """Once; the answer is a key, or the version becoming live by another's hand."""
        entry = self._journal.state.rounds[-1]
        if self.plan.promote == "auto":
            self._journal.note(Promote())
        elif self.asked != entry.version:
            self.asked = entry.version
            if self.commands.live() == entry.version:  # somebody has answered before this process was started
                self._journal.note(Promote())
                return
            keys = self.plan.keys
            typer.echo(f"{entry.version} passed the gate: {keys.live} makes it live, {keys.leave} leaves it")

    def _publish(self) -> None:
        entry = self._journal.state.rounds[-1]
        trial = on_trial(self._journal.state, self.plan.tries)
        if self._publishing is None:
            if trial is not None:  # its tries are of one version
                return
            base = _base_of(self.plan.store, entry.version)
            self._publishing = self.commands.publish(entry.version, base, f"{self._journal.state.name}-{entry.number}")
        elif self._publishing.done():
            reason, self._publishing = self._publishing.result(), None
            self._journal.note(NotLive(reason) if reason else Live())
            if reason or not self.plan.tries:
                self._journal.show(entry.number)


def _base_of(store: Path, version: str) -> str | None:
    return open_store(store).open(version).manifest.parent


def _errors(folder: Path) -> tuple[float | None, float | None]:
    """Held-out action error of the new tasks before and after, deg, the mean over tasks; None where nothing was
    held out."""
    verdict = Bundle.open(folder).manifest.verdict or {}
    sides = (verdict.get("figures") or {}).get("held_out") or {}
    found = [sides[when].get("new") for when in ("before", "after") if when in sides]
    before, after = (mean_over_tasks(figures, "error_deg") if figures else None for figures in (*found, None, None)[:2])
    return before, after
