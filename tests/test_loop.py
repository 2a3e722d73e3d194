"""The control loop with a real driver over a virtual bus: how episodes go, and where the arm is afterwards."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import LevelPolicy, TinyControl, TinySlot

from hotpolicy.robots.arms.so import SO101_FOLLOWER
from hotpolicy.robots.calibration import JointCalibration
from hotpolicy.robots.feed import Feed, WhenFull
from hotpolicy.robots.limits import LimitedArm, Limits
from hotpolicy.robots.loop import ControlLoop
from hotpolicy.robots.operators import Decision
from hotpolicy.robots.robot import Frame
from hotpolicy.robots.servo.arm import connect
from hotpolicy.robots.servo.bus import Timing
from hotpolicy.robots.sim.pty import VirtualPort, serve
from hotpolicy.robots.sim.servos import VirtualBus
from hotpolicy.robots.sources import HOLD, PolicySource, SteppedPolicySource, Wish
from hotpolicy.runtime.chunks import ChunkBuffer
from hotpolicy.runtime.client import PolicyClient
from hotpolicy.runtime.clock import Rate
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.errors import BadRequest, BusLost, CameraLost, DatasetError, LimitViolation, RobotError
from hotpolicy.runtime.messages import Observation, Step
from hotpolicy.runtime.server import PolicyServer

TASK = "touch the red cube"
CALIBRATION = {row.name: JointCalibration(row.id, 0, 0, 1000, 3000) for row in SO101_FOLLOWER.joints}
MIDDLE = [2000.0] * 6  # ticks: where every servo starts
START = np.array([0, 0, 0, 0, 0, 50], np.float32)  # the same in degrees and percent
IMAGE = np.zeros((48, 64, 3), np.uint8)


class AtOnce:
    """A pacer without a pace."""

    def wait(self) -> float:
        return 0.0


class Eye:
    """A camera that looks at nothing; `hooks[n]` happens as its n-th picture is taken."""

    name = "front"

    def __init__(self, hooks: dict[int, Callable[[], object]] | None = None):
        self.hooks = hooks or {}
        self.looked = 0

    def read(self) -> Frame:
        self.looked += 1
        if hook := self.hooks.get(self.looked):
            hook()
        return Frame(IMAGE, time.monotonic())

    def close(self) -> None:
        pass


class Script:
    """A source that knows its wishes from the start, and ends with them."""

    def __init__(self, *wishes: Wish, then: Decision = "done"):
        self.wishes = list(wishes)
        self.then = then

    def begin(self, task: str) -> None:
        self.left = list(self.wishes)

    def act(self, observation: Observation) -> Wish | None:
        return self.left.pop(0) if self.left else None

    def decision(self) -> Decision:
        return self.then


class Notebook:
    """A subscriber that writes down what it is told; may wait before each step, or fail at one."""

    def __init__(self, gate: threading.Event | None = None, failure: Exception | None = None, fails_at: int = 2):
        self.events: list[str] = []
        self.steps: list[Step] = []
        self.success: bool | None = None
        self._gate, self._failure, self._fails_at = gate, failure, fails_at

    def begin(self, task: str) -> None:
        self.events.append("begin")

    def step(self, step: Step) -> None:
        if self._gate:
            assert self._gate.wait(30)
        if self._failure and len(self.steps) + 1 == self._fails_at:
            raise self._failure
        self.steps.append(step)

    def save(self, success: bool | None = None) -> None:
        self.events.append("save")
        self.success = success

    def discard(self) -> None:
        self.events.append("discard")


@pytest.fixture
def virtual() -> VirtualBus:
    return VirtualBus.from_calibration(CALIBRATION)


@pytest.fixture
def port(virtual: VirtualBus, tmp_path: Path) -> Iterator[VirtualPort]:
    with serve(virtual, VirtualPort(tmp_path / "arm"), step_ticks=50) as port:
        yield port


@pytest.fixture
def arm(port: VirtualPort) -> Iterator[LimitedArm]:
    """Under torque, in the middle of its ranges; at most 20 deg or percent a tick."""
    bare = connect(port.path, CALIBRATION, timing=Timing(margin_ms=150, budget_ms=400))
    arm = LimitedArm(bare, Limits.of(bare.spec, max_step=20.0))
    arm.torque(True)
    yield arm
    bare.bus.close()


@pytest.fixture
def feed() -> Iterator[Callable[..., Feed]]:
    feeds: list[Feed] = []

    def make(subscriber: Notebook, when_full: WhenFull = "fail", room_mb: float = 256.0) -> Feed:
        feeds.append(Feed(subscriber, when_full, room_mb))
        return feeds[-1]

    yield make
    for feed in feeds:
        feed.close(10)


MakeFeed = Callable[..., Feed]


def wish(degrees: float, version: str | None = None) -> Wish:
    return Wish(START + np.array([degrees] * 5 + [0], np.float32), version)


def freeze(virtual: VirtualBus) -> None:
    """Servos that hear their goals and get nowhere: a goal and a position can then be told apart."""
    for servo in virtual.servos:
        servo.advance = lambda ticks: None  # type: ignore[method-assign]


def goals(virtual: VirtualBus, arm: LimitedArm) -> list[float | None]:
    arm._arm.bus.ping(1)  # type: ignore[attr-defined]  # returns once all that was sent before has arrived
    return [servo.goal_ticks for servo in virtual.servos]


# How an episode ends --------------------------------------------------------------------------------------------------


def test_an_episode_from_look_to_save(virtual: VirtualBus, arm: LimitedArm, feed: MakeFeed) -> None:
    notebook = Notebook()
    loop = ControlLoop(arm, [Eye()], AtOnce(), [feed(notebook)])
    report = loop.run(TASK, Script(wish(10, "aa"), wish(60, "bb"), wish(60, "bb"), wish(60)), max_ticks=99)
    assert (report.end, report.success, report.kept) == ("done", True, True)
    assert (report.ticks, report.held, report.stale, report.late) == (4, 0, 0, 0)
    assert report.versions == ("aa", "bb")
    assert 0 < report.longest_s <= report.seconds
    assert (notebook.events, notebook.success) == (["begin", "save"], True)
    first, _, third, fourth = notebook.steps
    assert np.array_equal(first.observation.state, START)
    assert (first.observation.task, list(first.observation.images)) == (TASK, ["front"])
    assert [step.requested[0] for step in notebook.steps] == [10, 60, 60, 60]
    assert [step.action[0] for step in notebook.steps] == [10, 30, 50, 60]  # 20 deg a tick
    assert (first.version, fourth.version, third.intervention) == ("aa", None, False)
    assert third.observation.state[0] > 1  # it moves; a goal and the next question may have come in one exchange


def test_the_arm_is_held_where_it_is_when_the_episode_is_over(virtual: VirtualBus, arm: LimitedArm) -> None:
    freeze(virtual)
    ControlLoop(arm, [Eye()], AtOnce()).run(TASK, Script(wish(10)), max_ticks=99)
    assert goals(virtual, arm) == MIDDLE


@pytest.mark.parametrize("decision", ["again", "stop"])
def test_an_episode_nobody_wants(arm: LimitedArm, feed: MakeFeed, decision: Decision) -> None:
    notebook = Notebook()
    loop = ControlLoop(arm, [Eye()], AtOnce(), [feed(notebook)])
    report = loop.run(TASK, Script(wish(1), then=decision), max_ticks=99)
    assert (report.end, report.success, report.kept) == (decision, None, False)
    assert notebook.events == ["begin", "discard"]


def test_a_source_that_ends_at_once(arm: LimitedArm) -> None:
    report = ControlLoop(arm, [Eye()], AtOnce()).run(TASK, Script(), max_ticks=99)
    assert (report.end, report.ticks, report.longest_s, report.versions) == ("done", 0, 0.0, ())
    assert not report.kept  # there is nothing to keep


@pytest.mark.parametrize(("word", "linger", "ticks"), [(True, 0, 3), (True, 2, 5), (False, 0, 3), (False, 2, 3)])
def test_the_judge_ends_it(arm: LimitedArm, word: bool, linger: int, ticks: int) -> None:
    verdicts = [None, None, word]
    loop = ControlLoop(arm, [Eye()], AtOnce())
    report = loop.run(TASK, Script(*[wish(1)] * 20), max_ticks=20, judge=lambda: verdicts.pop(0), linger=linger)
    assert (report.end, report.success, report.ticks) == ("judged", word, ticks)


def test_where_a_judge_looks_on_it_is_the_judge_who_says_success(arm: LimitedArm) -> None:
    loop = ControlLoop(arm, [Eye()], AtOnce())
    report = loop.run(TASK, Script(wish(1)), max_ticks=9, judge=lambda: None)
    assert (report.end, report.success, report.kept) == ("done", False, True)
    report = loop.run(TASK, Script(wish(1), wish(1)), max_ticks=9, judge=lambda: True, linger=5)
    assert (report.end, report.success, report.ticks) == ("done", True, 2)


@pytest.mark.parametrize(("judge", "success"), [(None, None), (lambda: None, False)])
def test_the_time_is_up(arm: LimitedArm, judge: Callable[[], bool | None] | None, success: bool | None) -> None:
    report = ControlLoop(arm, [Eye()], AtOnce()).run(TASK, Script(*[wish(1)] * 20), max_ticks=6, judge=judge)
    assert (report.end, report.success, report.ticks, report.kept) == ("limit", success, 6, True)


def test_one_loop_runs_many_episodes(arm: LimitedArm, feed: MakeFeed) -> None:
    notebook = Notebook()
    loop = ControlLoop(arm, [Eye()], AtOnce(), [feed(notebook)])
    for _ in range(3):
        assert loop.run(TASK, Script(wish(5), HOLD), max_ticks=99).held == 1
    assert notebook.events == ["begin", "save"] * 3


# Without an action ----------------------------------------------------------------------------------------------------


def test_silence_holds_the_arm_once_and_is_counted(virtual: VirtualBus, arm: LimitedArm, feed: MakeFeed) -> None:
    freeze(virtual)
    seen: list[Any] = []

    def sag() -> None:
        seen.append(goals(virtual, arm))
        virtual.servo(2).present_ticks -= 5

    notebook = Notebook()
    loop = ControlLoop(arm, [Eye({tick: sag for tick in (3, 4, 5)})], AtOnce(), [feed(notebook)])
    report = loop.run(TASK, Script(wish(10), HOLD, HOLD, HOLD, wish(10)), max_ticks=99)
    assert (report.ticks, report.held, report.stale) == (5, 3, 0)
    assert seen == [MIDDLE] * 3  # held where it was then, not lower each tick
    assert [step.action[0] for step in notebook.steps] == [10, 0, 0, 0, 10]
    assert [step.requested[0] for step in notebook.steps] == [10, 0, 0, 0, 10]
    assert notebook.events[-1] == "save"


def test_a_silent_joint_holds_the_arm(virtual: VirtualBus, arm: LimitedArm, feed: MakeFeed) -> None:
    freeze(virtual)
    seen: list[Any] = []
    hooks = {
        2: lambda: virtual.inject("silent", id=3),  # heard from the third tick on
        4: lambda: seen.append(goals(virtual, arm)),
        5: virtual.clear,
    }
    notebook = Notebook()
    loop = ControlLoop(arm, [Eye(hooks)], AtOnce(), [feed(notebook)])
    report = loop.run(TASK, Script(*[wish(10)] * 8), max_ticks=99)
    assert report.held == report.stale >= 2
    # The others are held where they are; the silent one keeps the goal it had, and nobody can tell it another.
    assert seen == [[2000, 2000, 2113, 2000, 2000, 2000]]
    assert [step.action[0] for step in notebook.steps][2:4] == [0, 0]
    assert [step.requested[0] for step in notebook.steps][2:4] == [10, 10]
    assert notebook.steps[-1].action[0] == 10  # and goes on


def test_a_loop_that_was_kept_waiting_holds_before_anything_else(virtual: VirtualBus, arm: LimitedArm) -> None:
    freeze(virtual)
    pacer = AtOnce()
    pacer.wait = lambda: time.sleep(arm.limits.watchdog_s + 0.2) or 0.0  # type: ignore[method-assign, func-returns-value]
    seen: list[Any] = []
    eye = Eye({2: lambda: seen.extend([arm.holding, goals(virtual, arm)])})
    ControlLoop(arm, [eye], pacer).run(TASK, Script(wish(10), wish(10)), max_ticks=2)
    assert seen == [True, MIDDLE]
    assert not arm.holding  # a fresh action goes on from there


# Actions no arm may get -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [START * np.nan, START + np.inf, START[:5], START[None]])
def test_an_action_that_is_none_moves_nothing(
    virtual: VirtualBus, arm: LimitedArm, feed: MakeFeed, bad: np.ndarray
) -> None:
    notebook = Notebook()
    to = feed(notebook)
    with pytest.raises(LimitViolation, match="nothing was sent"):
        ControlLoop(arm, [Eye()], AtOnce(), [to]).run(TASK, Script(Wish(bad), wish(10)), max_ticks=99)
    assert goals(virtual, arm) == MIDDLE
    assert [servo.present_ticks for servo in virtual.servos] == MIDDLE
    to.flush(10)
    assert (notebook.events, notebook.steps) == (["begin", "discard"], [])


# When something breaks ------------------------------------------------------------------------------------------------


def raising(error: BaseException) -> Callable[..., object]:
    def hook(*_: object) -> None:
        raise error

    return hook


@pytest.mark.parametrize("error", [CameraLost("camera front: gone"), KeyboardInterrupt(), ZeroDivisionError("a bug")])
def test_whatever_breaks_the_arm_is_held(
    virtual: VirtualBus, arm: LimitedArm, feed: MakeFeed, error: BaseException
) -> None:
    freeze(virtual)
    notebook = Notebook()
    to = feed(notebook)
    with pytest.raises(type(error)) as caught:
        ControlLoop(arm, [Eye({3: raising(error)})], AtOnce(), [to]).run(TASK, Script(*[wish(10)] * 9), max_ticks=99)
    assert caught.value is error
    assert goals(virtual, arm) == MIDDLE
    to.flush(10)
    assert notebook.events == ["begin", "discard"]
    assert len(notebook.steps) == 2


def test_a_cut_cable_is_what_is_reported(port: VirtualPort, arm: LimitedArm, feed: MakeFeed, caplog: Any) -> None:
    notebook = Notebook()
    to = feed(notebook)
    with pytest.raises(BusLost):
        ControlLoop(arm, [Eye({3: port.unplug})], AtOnce(), [to]).run(TASK, Script(*[wish(10)] * 9), max_ticks=99)
    assert "the arm could not be held" in caplog.text
    to.flush(10)
    assert notebook.events == ["begin", "discard"]


@pytest.mark.parametrize(
    ("failure", "expected", "text"),
    [
        (DatasetError("demos: cannot be written"), DatasetError, "^demos: cannot be written$"),
        (OSError(28, os.strerror(28)), RobotError, "^Notebook failed: OSError: .*No space left on device$"),
    ],
)
@pytest.mark.parametrize("when_full", ["fail", "wait"])
def test_a_recorder_that_fails_ends_the_episode(
    virtual: VirtualBus, arm: LimitedArm, feed: MakeFeed, failure: Exception, expected: type, text: str, when_full: str
) -> None:
    freeze(virtual)
    notebook, other = Notebook(failure=failure), Notebook()
    feeds = [feed(notebook, when_full), feed(other)]
    loop = ControlLoop(arm, [Eye()], Rate(50), feeds)
    with pytest.raises(expected, match=text):
        loop.run(TASK, Script(*[wish(10)] * 200), max_ticks=200)
    assert goals(virtual, arm) == MIDDLE
    for to in feeds:
        to.flush(10)
    assert (notebook.events, len(notebook.steps)) == (["begin", "discard"], 1)
    assert other.events == ["begin", "discard"]
    assert loop.run(TASK, Script(), max_ticks=5).end == "done"  # the next episode is another matter


def test_a_recorder_that_fails_at_the_end(arm: LimitedArm, feed: MakeFeed) -> None:
    notebook = Notebook()
    notebook.save = raising(DatasetError("demos: episode 3 was not sealed"))  # type: ignore[assignment]
    to = feed(notebook)
    with pytest.raises(DatasetError, match="episode 3"):
        ControlLoop(arm, [Eye()], AtOnce(), [to]).run(TASK, Script(wish(1)), max_ticks=99)
    to.flush(10)
    assert notebook.events == ["begin", "discard"]


def test_a_viewer_that_fails_is_left_alone(arm: LimitedArm, feed: MakeFeed) -> None:
    viewer, notebook = Notebook(failure=OSError("no window")), Notebook()
    loop = ControlLoop(arm, [Eye()], Rate(50), [feed(viewer, "drop"), feed(notebook)])
    assert loop.run(TASK, Script(*[wish(10)] * 10), max_ticks=99).end == "done"
    assert (len(notebook.steps), len(viewer.steps)) == (10, 1)


# Subscribers that fall behind -----------------------------------------------------------------------------------------

ROOM_MB = 3 * IMAGE.nbytes / 1e6  # for three steps


def test_a_recorder_that_falls_behind_ends_the_episode(virtual: VirtualBus, arm: LimitedArm, feed: MakeFeed) -> None:
    freeze(virtual)
    gate = threading.Event()
    notebook = Notebook(gate)
    to = feed(notebook, "fail", ROOM_MB)
    with pytest.raises(RobotError, match="Notebook is 0 MB behind the robot: expected it to keep up"):
        ControlLoop(arm, [Eye()], AtOnce(), [to]).run(TASK, Script(*[wish(10)] * 50), max_ticks=99)
    assert goals(virtual, arm) == MIDDLE
    gate.set()
    to.flush(10)
    assert notebook.events == ["begin", "discard"]
    assert len(notebook.steps) <= 4


def test_in_simulations_the_loop_waits_for_the_recorder(arm: LimitedArm, feed: MakeFeed) -> None:
    gate = threading.Event()
    notebook = Notebook(gate)
    opener = threading.Timer(0.4, gate.set)
    opener.start()
    loop = ControlLoop(arm, [Eye()], AtOnce(), [feed(notebook, "wait", ROOM_MB)])
    report = loop.run(TASK, Script(*[wish(n) for n in range(20)]), max_ticks=99)
    opener.join()
    assert (report.ticks, notebook.events) == (20, ["begin", "save"])
    assert [step.requested[0] for step in notebook.steps] == list(range(20))
    assert report.longest_s > 0.2


def test_nobody_waits_for_a_viewer(arm: LimitedArm, feed: MakeFeed) -> None:
    gate = threading.Event()
    viewer = Notebook(gate)
    to = feed(viewer, "drop", ROOM_MB)
    report = ControlLoop(arm, [Eye()], AtOnce(), [to]).run(TASK, Script(*[wish(n) for n in range(20)]), max_ticks=99)
    assert report.ticks == 20
    assert 16 <= to.dropped <= 17  # three wait, one may be with the viewer
    gate.set()
    to.flush(10)
    assert len(viewer.steps) + to.dropped == 20
    assert viewer.events == ["begin", "save"]


# Time -----------------------------------------------------------------------------------------------------------------


def test_late_ticks_are_counted_and_not_made_up_for(arm: LimitedArm) -> None:
    eye = Eye({3: lambda: time.sleep(0.35)})
    report = ControlLoop(arm, [eye], Rate(10), []).run(TASK, Script(*[wish(1)] * 6), max_ticks=6)
    assert 1 <= report.late <= 6
    assert report.longest_s >= 0.35
    assert report.seconds >= 0.35 + 5 * 0.1 - 0.05


# A policy server behind it --------------------------------------------------------------------------------------------


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., PolicyServer]]:
    """Starts servers, one after another, on one endpoint."""
    servers: list[PolicyServer] = []

    def begin(policy: LevelPolicy) -> PolicyServer:
        slot = TinySlot(policy)
        config = ServeConfig(endpoint=f"ipc://{tmp_path}/s", drain_s=0.1)
        servers.append(PolicyServer(config, slot, TinyControl(slot)))
        servers[-1].start()
        servers[-1].wait_ready(10)
        return servers[-1]

    yield begin
    for server in servers:
        server.stop()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[PolicyClient]:
    with PolicyClient(f"ipc://{tmp_path}/s") as client:
        yield client


Start = Callable[..., PolicyServer]


def test_a_policy_drives_the_arm(arm: LimitedArm, start: Start, client: PolicyClient, feed: MakeFeed) -> None:
    start(LevelPolicy(10.0))
    notebook = Notebook()
    source = PolicySource(client, ChunkBuffer(20.0))
    loop = ControlLoop(arm, [Eye()], Rate(20), [feed(notebook)])
    report = loop.run(TASK, source, max_ticks=30)
    acted = [step for step in notebook.steps if step.version]
    assert (report.end, report.ticks, report.versions) == ("limit", 30, ("v10",))
    assert len(acted) == 30 - report.held > 0
    assert {float(step.requested[0]) for step in acted} == {10.0}
    assert report.held == source.buffer.holds


def test_a_lost_server_means_hold_and_a_new_one_means_go(
    virtual: VirtualBus, arm: LimitedArm, start: Start, client: PolicyClient, feed: MakeFeed
) -> None:
    freeze(virtual)
    server = start(LevelPolicy(10.0))
    notebook = Notebook()
    to = feed(notebook)
    ends = time.monotonic() + 60
    held: list[Any] = []
    phase = "first"

    def judge() -> bool | None:
        nonlocal phase
        assert time.monotonic() < ends, phase
        to.flush()
        last = notebook.steps[-1]
        if phase == "first" and last.version == "v10":
            server.stop()
            phase = "lost"
        elif phase == "lost" and last.version is None:
            held.append(goals(virtual, arm))
            if len(held) == 5:
                start(LevelPolicy(20.0))
                phase = "second"
        elif phase == "second" and last.version == "v20":
            return True
        return None

    source = PolicySource(client, ChunkBuffer(20.0), deadline_ms=300)
    report = ControlLoop(arm, [Eye()], Rate(20), [to]).run(TASK, source, max_ticks=2000, judge=judge)
    assert (report.end, report.success, report.versions) == ("judged", True, ("v10", "v20"))
    assert held == [MIDDLE] * 5
    assert report.held >= 5
    assert source.failures["server_lost"] >= 1
    assert goals(virtual, arm) == MIDDLE


@pytest.mark.parametrize("kind", [PolicySource, SteppedPolicySource])
def test_a_server_that_is_too_slow_moves_nothing(
    virtual: VirtualBus, arm: LimitedArm, start: Start, client: PolicyClient, kind: type
) -> None:
    policy = LevelPolicy(10.0, delay_s=1.0)
    start(policy)
    source: Any = (
        PolicySource(client, ChunkBuffer(20.0), deadline_ms=100)
        if kind is PolicySource
        else SteppedPolicySource(client, replan=4, deadline_ms=100)
    )
    report = ControlLoop(arm, [Eye()], Rate(20)).run(TASK, source, max_ticks=12)
    assert report.held == report.ticks == 12
    assert source.failures.total() >= 2
    assert goals(virtual, arm) == MIDDLE
    policy.delay_s = 0.0


def test_without_a_server_the_arm_holds(virtual: VirtualBus, arm: LimitedArm, client: PolicyClient) -> None:
    source = PolicySource(client, ChunkBuffer(20.0))
    report = ControlLoop(arm, [Eye()], Rate(50)).run(TASK, source, max_ticks=10)
    assert (report.held, source.failures["server_lost"]) == (10, 10)
    assert goals(virtual, arm) == MIDDLE


def test_a_policy_that_answers_nonsense(arm: LimitedArm, start: Start, client: PolicyClient) -> None:
    """The server finds it out, the loop holds."""
    start(LevelPolicy(10.0))
    source = SteppedPolicySource(client, replan=4)
    report = ControlLoop(arm, [Eye()], AtOnce()).run("nan", source, max_ticks=4)
    assert (report.held, source.failures["engine_fault"]) == (4, 4)


def test_a_robot_the_policy_does_not_know(
    virtual: VirtualBus, arm: LimitedArm, start: Start, client: PolicyClient
) -> None:
    start(LevelPolicy(10.0))
    eye = Eye()
    eye.name = "wrist"
    with pytest.raises(BadRequest, match="images: expected the camera front"):
        ControlLoop(arm, [eye], Rate(20)).run(TASK, PolicySource(client, ChunkBuffer(20.0)), max_ticks=400)
    assert goals(virtual, arm) == MIDDLE
