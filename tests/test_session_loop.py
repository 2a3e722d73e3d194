"""A session's loop between a robot, a tuning process and a server, each played by a few lines: who waits for whom, what
the keys do, and what is said."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from hotpolicy.launch.sessions import state as states
from hotpolicy.launch.sessions.file import load
from hotpolicy.launch.sessions.loop import Session
from hotpolicy.launch.sessions.plan import SessionPlan
from hotpolicy.launch.sessions.practice import Practice
from hotpolicy.runtime.errors import TuningError, UnknownVersion


@dataclass
class Report:
    end: str = "judged"
    success: bool | None = True
    versions: tuple[str, ...] = ()

    @property
    def kept(self) -> bool:
        return self.end == "judged"


@dataclass
class World:
    """Robot, tuning process, server and dataset. `script` maps the number of a deed at the robot to keys pressed
    during it."""

    live: str = "base"
    before: str = "none"
    sealed: int = 0
    passes: bool = True
    clumsy: str = ""  # a taught version that has to be corrected all the same
    lasts: int = 3  # deeds at the robot that a tuning process takes
    dies: int = 0  # times it is killed
    script: dict[int, str] = field(default_factory=dict)
    stops_at: int = 60
    deeds: list[str] = field(default_factory=list)
    jobs: list[states.Job] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    pressed: deque[str] = field(default_factory=deque)
    left: int = 0
    running: bool = False

    def __len__(self) -> int:
        return self.sealed

    @property
    def acts(self) -> list[str]:
        return [deed for deed in self.deeds if deed != "wait"]

    # At the robot.

    def _deed(self, name: str) -> Report:
        if len(self.deeds) >= self.stops_at:
            return Report(end="stop")
        if key := self.script.get(len(self.deeds)):
            self.pressed.append(key)
        self.deeds.append(name)
        self.left -= 1
        return Report(versions=(self.live,))

    def demonstrate(self) -> Report:
        report = self._deed("demonstrate")
        self.sealed += report.end != "stop"
        return report

    def correct(self) -> Report:
        """The policy acts; what the base does has to be corrected, what was taught has not."""
        report = self._deed(f"watch {self.live}")
        self.sealed += report.end != "stop" and self.live in ("base", self.clumsy)
        return report

    def attempt(self, number: int) -> tuple[Report, bool]:
        return self._deed(f"try {self.live}"), False

    def wait(self, collecting: str) -> None:
        self._deed("wait")

    # The tuning process.

    def start(self, job: states.Job) -> None:
        self.jobs.append(job)
        self.running, self.left = True, self.lasts

    def poll(self) -> list[dict[str, Any]]:
        if self.dies:
            self.dies, self.running = self.dies - 1, False
            return [{"event": "lost", "words": "Killed"}]
        if self.left > 0:
            return []
        self.running = False
        said = {"version": f"v{len(self.jobs)}", "passed": self.passes, "reasons": [] if self.passes else ["worse"]}
        return [{"event": "sealed", "folder": "", **said}]

    # The server.

    def publish(self, version: str, base: str | None, request_id: str) -> Future[str]:
        self.requests.append(request_id)
        self.before, self.live = self.live, version
        return _done("")

    def roll_back(self) -> Future[Any]:
        if self.before == "none":
            future: Future[Any] = Future()
            future.set_exception(UnknownVersion("there is no previous version to return to"))
            return future
        self.before, self.live = self.live, self.before
        return _done({"version": self.live, "before": self.before})


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class Server:
    """The world's side that takes commands; `live` is asked, not read."""

    def __init__(self, world: World):
        self.publish, self.roll_back = world.publish, world.roll_back
        self.live = lambda: world.live


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SessionPlan:
    monkeypatch.setattr("hotpolicy.launch.sessions.pipeline._errors", lambda folder: (5.0, 2.0))
    monkeypatch.setattr("hotpolicy.launch.sessions.pipeline._base_of", lambda store, version: "base")
    return SessionPlan(tmp_path, ("wave",), rounds=2, episodes=2, tries=2, promote="auto")


def session(plan: SessionPlan, world: World) -> Session:
    made: Any = Session
    return made(plan, load(plan.folder), world, world, world, Server(world), world.pressed)


def test_demonstrations_go_on_while_it_is_tuned(plan: SessionPlan, capsys: pytest.CaptureFixture[str]) -> None:
    world = World()
    session(plan, world).run()
    assert world.deeds[:5] == ["demonstrate"] * 4 + ["wait"]  # two for this round, two for the next, then it waits
    assert world.acts[4:] == ["try v1"] * 2 + ["try v2"] * 2
    assert world.sealed == 4
    assert [(job.until, job.since, job.base) for job in world.jobs] == [(2, 0, "base"), (4, 2, "v1")]
    assert len(set(world.requests)) == 2
    out = capsys.readouterr().out
    assert "round  1  v1  live         2/2 1.00 [0.34, 1.00]" in out
    assert (plan.folder / "session.png").exists()
    state = load(plan.folder)
    assert state.published == ["v1", "v2"]
    session(plan, fresh := World()).run()  # nothing is left to do
    assert fresh.deeds == []


def test_who_is_asked_is_not_waited_for(plan: SessionPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    world = World(lasts=1, script={0: "live", 1: "leave", 5: "live"})  # the first two before anything was asked
    run = session(replace(plan, promote="ask", rounds=1, episodes=2), world)
    run.run()
    assert world.deeds == ["demonstrate"] * 2 + ["wait"] * 5 + ["try v1"] * 2


def test_it_can_be_left(plan: SessionPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    world = World(lasts=1, script={1: "leave", 4: "leave"})
    session(replace(plan, promote="ask", rounds=1), world).run()
    assert (world.live, world.requests, len(world.deeds)) == ("base", [], 5)
    assert load(plan.folder).rounds[0].outcome == "left"


def test_nobody_there_to_ask_ends_it_with_what_to_do(
    plan: SessionPlan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    asking = replace(plan, promote="ask", rounds=1)
    session(asking, World(lasts=0)).run()
    assert "v1 waits for a decision" in capsys.readouterr().out
    assert load(plan.folder).phase == "asking"
    session(asking, world := World(live="v1", sealed=2)).run()  # somebody swapped it in by hand
    assert world.acts == ["try v1"] * 2
    assert load(plan.folder).published == ["v1"]


def test_one_key_rolls_back(plan: SessionPlan, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(script={3: "back"}, lasts=0)
    session(replace(plan, rounds=1, tries=5), world).run()
    assert world.acts == ["demonstrate"] * 2 + ["try v1"]  # not tried on
    assert world.live == "base"
    (entry,) = load(plan.folder).rounds
    assert (entry.version, entry.rolled_back, entry.tries) == ("v1", True, 1)
    assert "rolled back: base is live, v1 is not" in capsys.readouterr().out


def test_there_may_be_nothing_to_roll_back_to(plan: SessionPlan, capsys: pytest.CaptureFixture[str]) -> None:
    session(replace(plan, rounds=1), world := World(script={0: "back"}, lasts=0)).run()
    assert "not rolled back: there is no previous version" in capsys.readouterr().out
    assert world.live == "v1"  # and the session went on


def test_a_server_that_went_back_by_itself_is_noticed(plan: SessionPlan) -> None:
    class Flaky(World):
        def publish(self, version: str, base: str | None, request_id: str) -> Future[str]:
            return _done("")  # live, and at once no more

    session(replace(plan, rounds=1), world := Flaky(lasts=0)).run()
    (entry,) = load(plan.folder).rounds
    assert (entry.rolled_back, entry.tries) == (True, 0)
    assert world.deeds[-1] == "try base"


def test_what_is_refused_is_not_tried(plan: SessionPlan, capsys: pytest.CaptureFixture[str]) -> None:
    session(replace(plan, rounds=1), world := World(passes=False)).run()
    assert not [deed for deed in world.deeds if deed.startswith("try")]
    assert world.requests == []
    assert "worse" in capsys.readouterr().out


def test_a_killed_tuning_process_is_given_the_same_job(plan: SessionPlan) -> None:
    session(replace(plan, rounds=1), world := World(dies=2)).run()
    assert len(world.jobs) == 3
    assert len({*world.jobs}) == 1
    with pytest.raises(TuningError, match="killed 3 times: Killed"):
        session(replace(plan, rounds=2), World(dies=3, sealed=4)).run()
    assert load(plan.folder).phase == "tuning"  # and the same command tries again


def test_the_operator_stops_and_goes_on(plan: SessionPlan, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(stops_at=3)
    session(plan, world).run()
    assert "stopped by the operator" in capsys.readouterr().out
    (job,) = world.jobs
    after = World(sealed=world.sealed)
    session(plan, after).run()
    assert after.jobs[0] == job  # the same run
    assert load(plan.folder).published == ["v1", "v2"]


def test_corrections_are_collected_until_none_is_needed(plan: SessionPlan, capsys: pytest.CaptureFixture[str]) -> None:
    correcting = replace(plan, collect=("correct",), take_over="scripted", uncorrected=3, rounds=3)
    session(correcting, world := World(lasts=0, clumsy="v1")).run()
    first = ["watch base"] * 2 + ["watch v1", "try v1", "try v1", "watch v1"]
    assert world.acts == [*first, "watch v2", "try v2", "try v2", *["watch v2"] * 3]
    assert "3 episodes in a row needed no correction: nothing is left to teach" in capsys.readouterr().out
    assert load(plan.folder).published == ["v1", "v2"]


def test_none_needed_yet_a_version_is_on_its_way(plan: SessionPlan) -> None:
    """What is tuned may need corrections again: it is waited for, and counted anew."""
    correcting = replace(plan, collect=("correct",), take_over="scripted", uncorrected=2, tries=0)

    class Early(World):
        def correct(self) -> Report:
            if self.live == "base" and self.sealed >= 2:
                return self._deed("watch base")  # it needs nobody now
            return super().correct()

    session(correcting, world := Early(lasts=6, clumsy="v1")).run()
    assert world.acts == ["watch base"] * 4 + ["watch v1"] * 2
    assert load(plan.folder).published == ["v1", "v2"]


BOTH: dict[str, Any] = {"collect": ("demonstrate", "correct"), "take_over": "scripted"}


def test_what_was_demonstrated_is_corrected_once_it_is_live(plan: SessionPlan) -> None:
    """Nobody corrects, meanwhile, a policy that does not know the task."""
    session(replace(plan, **BOTH, rounds=3), world := World(clumsy="v1")).run()
    first = ["demonstrate"] * 2 + ["try v1"] * 2 + ["watch v1"] * 2
    assert world.acts[:6] == first
    assert world.deeds[2:5] == ["wait"] * 3  # for the version that is to be corrected
    assert world.acts[6:8] == ["watch v1"] * 2  # corrections are collected while others are learned from, as ever
    assert [(job.until, job.since, job.base) for job in world.jobs] == [(2, 0, "base"), (4, 2, "v1"), (6, 4, "v2")]


def test_until_a_version_is_live_it_is_demonstrated(plan: SessionPlan) -> None:
    session(replace(plan, **BOTH), world := World(passes=False, lasts=0)).run()
    assert world.acts == ["demonstrate"] * 4


def test_what_was_rolled_back_is_not_corrected(plan: SessionPlan) -> None:
    session(replace(plan, **BOTH), world := World(lasts=0, script={3: "back"})).run()
    assert world.acts == ["demonstrate"] * 2 + ["try v1"] + ["demonstrate"] * 2 + ["try v2"] * 2


def test_before_and_after(plan: SessionPlan) -> None:
    session(replace(plan, rounds=1, baseline=True), world := World(lasts=0)).run()
    assert world.acts == ["try base"] * 2 + ["demonstrate"] * 2 + ["try v1"] * 2
    assert [entry.number for entry in load(plan.folder).rounds] == [0, 1]


def test_the_practice_has_what_the_session_asks_for() -> None:
    assert all(callable(getattr(Practice, name)) for name in ("demonstrate", "correct", "attempt", "wait"))
