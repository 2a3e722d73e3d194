"""A leader arm, and a person who takes over from a policy: no jump in either direction, every step marked."""

from __future__ import annotations

import os
import pty
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.recorder import Recorder
from hotpolicy.finetune.samples import taught
from hotpolicy.launch.profile_file import load_profile
from hotpolicy.launch.rig import Rig
from hotpolicy.launch.sessions.practice import Corrections
from hotpolicy.launch.teleop import operator
from hotpolicy.robots.arms.so import SO101_FOLLOWER, SO101_LEADER
from hotpolicy.robots.calibration import JointCalibration, write_calibration
from hotpolicy.robots.feed import Feed
from hotpolicy.robots.limits import JointLimit, LimitedArm, Limits
from hotpolicy.robots.loop import ControlLoop
from hotpolicy.robots.operators import Following, Pausing
from hotpolicy.robots.servo.arm import connect
from hotpolicy.robots.servo.bus import Timing
from hotpolicy.robots.sim.pty import VirtualPort, serve
from hotpolicy.robots.sim.servos import VirtualBus
from hotpolicy.robots.sources import SharedSource, Wish
from hotpolicy.robots.teleop.controls import HAND_BACK_S, Controls
from hotpolicy.robots.teleop.leader import NEAR, LeaderOperator
from hotpolicy.robots.teleop.terminal import Terminal
from hotpolicy.runtime.clock import Deadline
from hotpolicy.runtime.errors import BusLost, ConfigError
from hotpolicy.runtime.messages import Observation, RobotSpec

CALIBRATION = {row.name: JointCalibration(row.id, 0, 0, 1000, 3000) for row in SO101_FOLLOWER.joints}
PATIENT = Timing(margin_ms=300, budget_ms=2000)
START = np.array([0, 0, 0, 0, 0, 50], np.float32)
TASK = "touch the red cube"


def put(virtual, degrees):
    """A hand moves the shoulder of a released arm."""
    virtual.servos[0].place(2000 + degrees * 4095 / 360)


@pytest.fixture
def hand():
    return VirtualBus.from_calibration(CALIBRATION)


@pytest.fixture
def leader(hand, tmp_path):
    with serve(hand, VirtualPort(tmp_path / "leader"), step_ticks=60) as port:
        bare = connect(port.path, CALIBRATION, table=SO101_LEADER, timing=PATIENT)
        yield LimitedArm(bare, Limits.of(bare.spec, 3.0))
        bare.bus.close()


class Person:
    """Presses keys, and has all the time in the world."""

    def __init__(self):
        self.inside, self.outside = pty.openpty()
        self.time = 100.0

    def now(self):
        return self.time

    def press(self, keys):
        self.time += 2 * HAND_BACK_S
        os.write(self.inside, keys)
        time.sleep(0.05)


@pytest.fixture
def person():
    person = Person()
    yield person
    os.close(person.inside)
    os.close(person.outside)


@pytest.fixture
def operator_(leader, person):
    made = LeaderOperator(leader, leader.spec, Controls(Terminal(person.outside, person.now), person.now))
    yield made
    made._controls.close()


def seen(state=START):
    return Observation({}, np.asarray(state, np.float32), TASK)


# The leader -----------------------------------------------------------------------------------------------------------


def test_the_follower_slides_to_the_leader_and_is_then_with_it(hand, operator_):
    put(hand, 40)
    operator_.begin(TASK)
    ways = [operator_.act(seen())[0] for _ in range(60)]
    steps = np.diff([0.0, *ways])
    most = 175.8 / (1.5 * 30) + 0.1  # a joint's whole range in 1.5 s
    assert steps.max() <= most
    assert ways[-1] == pytest.approx(40, abs=0.2)
    put(hand, 20)  # arrived: now it does what the hand does, and the limits see to its speed
    assert operator_.act(seen())[0] == pytest.approx(20, abs=0.2)
    operator_.begin(TASK)  # a new episode slides anew
    assert operator_.act(seen())[0] <= most


def test_a_silent_leader_keeps_the_follower_where_it_was_sent(hand, operator_):
    operator_.begin(TASK)
    for _ in range(3):
        before = operator_.act(seen())
    hand.inject("silent", id=1)
    put(hand, 30)
    for _ in range(3):
        assert np.array_equal(operator_.act(seen()), before)
    hand.clear()
    for _ in range(8):  # it has to answer a ping first
        after = operator_.act(seen())
    assert after[0] == pytest.approx(30, abs=0.2)


def test_a_leader_that_is_gone_ends_it(hand, operator_, leader):
    operator_.begin(TASK)
    operator_.act(seen())
    leader._arm.bus.close()
    with pytest.raises(BusLost):
        operator_.act(seen())


def test_arms_that_do_not_match_are_refused(leader):
    joints = (replace(leader.spec.joints[0], unit="percent"), *leader.spec.joints[1:])
    with pytest.raises(ConfigError, match=r"leader: expected the follower's joints, .*'percent'.*, got .*'deg'"):
        LeaderOperator(leader, RobotSpec(joints, (), 30.0), Controls(None))
    with pytest.raises(ConfigError, match="leader: expected the follower's joints"):
        LeaderOperator(leader, RobotSpec(leader.spec.joints[:5], (), 30.0), Controls(None))


def test_the_leader_goes_along_while_a_policy_drives_and_lets_go_at_once(hand, operator_, leader, person):
    operator_.begin(TASK)
    at = START + np.array([25, 0, 0, 0, 0, 0], np.float32)
    goals = []
    for _ in range(20):
        operator_.act(seen(at))
        operator_.follow(at)
        leader._arm.bus.ping(1)  # returns once the goal has arrived
        goals.append(hand.servos[0].goal_ticks)
    assert {servo.torque for servo in hand.servos} == {True}
    assert np.diff(goals).max() <= 3.0 * 4095 / 360 + 1  # behind limits of its own
    deadline = Deadline.after(10)  # virtual servos move by the clock
    while abs(leader.read().positions[0] - 25) > 1 and not deadline.passed():
        time.sleep(0.01)
    assert leader.read().positions[0] == pytest.approx(25, abs=1)
    person.press(b" ")
    target = operator_.act(seen(at))
    assert {servo.torque for servo in hand.servos} == {False}
    assert operator_.in_control
    assert np.abs(target - at).max() <= NEAR  # nothing to slide: no jump


def test_a_leader_that_cannot_follow_costs_nobody_anything(hand, operator_, caplog):
    operator_.begin(TASK)
    hand.inject("silent", id=2)
    operator_.follow(START)
    hand.clear()
    assert "does not follow any more" in caplog.text
    assert operator_.act(seen()) is not None
    operator_.follow(START)
    assert not any(servo.torque for servo in hand.servos)


# Taking over ----------------------------------------------------------------------------------------------------------


class Policy:
    """Turns the shoulder on, a degree a tick, from where it is when it begins."""

    def __init__(self):
        self.begun, self._next = 0, None

    def begin(self, task):
        self.begun, self._next = self.begun + 1, None

    def act(self, observation):
        at = observation.state.astype(np.float64) if self._next is None else self._next
        self._next = at + np.array([1.0, 0, 0, 0, 0, 0])
        return Wish(self._next, version="0123456789abcdef")

    def decision(self):
        return "done"


class Paced:
    """Calls what is due at a tick."""

    def __init__(self, at):
        self.at, self.tick = at, 0

    def wait(self):
        self.tick += 1
        self.at.get(self.tick, lambda: None)()
        time.sleep(0.005)
        return 0.0


@pytest.fixture
def follower(tmp_path):
    virtual = VirtualBus.from_calibration(CALIBRATION)
    with serve(virtual, VirtualPort(tmp_path / "follower"), step_ticks=200) as port:
        bare = connect(port.path, CALIBRATION, timing=PATIENT)
        guard = LimitedArm(bare, Limits(tuple(JointLimit(j.low, j.high, 5.0) for j in bare.spec.joints)))
        guard.torque(True)
        yield guard
        bare.bus.close()


def test_pause_correct_and_hand_back(follower, operator_, person, hand, tmp_path):
    """Policy, pause, policy, correction, policy: the arm never jumps, and the dataset tells who acted."""
    assert isinstance(operator_, Pausing)
    assert isinstance(operator_, Following)
    policy = Policy()
    source = SharedSource(policy, operator_)
    at_take_over = []

    def take_over():
        person.press(b" ")
        at_take_over.append(follower.read().positions[0])

    pacer = Paced(
        {
            10: lambda: person.press(b"p"),
            15: lambda: person.press(b"p"),
            25: take_over,
            28: lambda: put(hand, 0),
            45: lambda: person.press(b" "),
        }
    )
    recorder = Recorder.open(tmp_path / "data", follower.spec)
    corrections = Corrections(recorder)
    with recorder:
        feed = Feed(corrections)
        report = ControlLoop(follower, [], pacer, [feed]).run(TASK, source, max_ticks=55, linger=0)
        feed.close()
    assert (report.ticks, report.paused) == (55, 5)
    assert policy.begun == 3  # after the pause, and after the correction
    assert corrections.corrected
    episode = Dataset.open(tmp_path / "data").episode(0, ())
    assert len(episode) == 55  # the pause teaches nothing, and is not there
    human = np.flatnonzero(episode.intervention)
    assert human.tolist() == list(range(20, 40))
    assert {episode.versions[i] for i in human} == {None}
    assert {episode.versions[i] for i in range(20)} == {"0123456789abcdef"}
    assert np.abs(np.diff(episode.action[:, 0])).max() <= 5.0 + 1e-3  # never more than a step
    assert abs(episode.action[20, 0] - at_take_over[0]) < 4  # the hand begins where the policy was
    assert episode.action[39, 0] == pytest.approx(0, abs=1)
    assert taught(episode.intervention) == [slice(20, 40)]


def test_an_episode_without_a_correction_is_not_kept(follower, operator_, tmp_path):
    with Recorder.open(tmp_path / "data", follower.spec) as recorder:
        feed = Feed(Corrections(recorder))
        ControlLoop(follower, [], Paced({}), [feed]).run(TASK, SharedSource(Policy(), operator_), max_ticks=5)
        feed.close()
        assert len(recorder) == 0


@pytest.mark.parametrize(
    ("human", "spans"),
    [
        ("....", [(0, 4)]),
        ("hhhh", [(0, 4)]),
        (".hh.", [(1, 3)]),
        ("h..h", [(0, 1), (3, 4)]),
        (".h.hh", [(1, 2), (3, 5)]),
    ],
)
def test_a_policy_learns_from_corrections_alone(human, spans):
    assert taught(np.array([letter == "h" for letter in human])) == [slice(*span) for span in spans]


def test_paused_ticks_have_no_end(follower, operator_, person):
    """The time of an episode does not pass while a person has halted it."""
    pacer = Paced({2: lambda: person.press(b"p"), 30: lambda: person.press(b"\x1b[C")})
    report = ControlLoop(follower, [], pacer).run(TASK, SharedSource(Policy(), operator_), max_ticks=5)
    assert (report.ticks, report.paused, report.end, report.held) == (2, 28, "done", 0)


# Profiles -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def profile(tmp_path):
    write_calibration(tmp_path / "blue.json", CALIBRATION)
    virtual = VirtualBus.from_calibration(CALIBRATION)
    follower = serve(virtual, VirtualPort(tmp_path / "follower"), step_ticks=60)
    leader = serve(VirtualBus.from_calibration(CALIBRATION), VirtualPort(tmp_path / "leader"), step_ticks=60)
    with follower as one, leader as other:
        arm = {"port": one.path, "baudrate": 1_000_000, "calibration": "blue.json"}
        joints = {r.name: {"unit": r.unit, "low": 0, "high": 80, "max_step": 1} for r in SO101_FOLLOWER.joints}
        data = {
            "name": "blue",
            "rate_hz": 50,
            "arm": arm,
            "leader": {**arm, "port": other.path},
            "joints": joints,
            "cameras": {},
            "watchdog_s": 0.3,
            "server": {"endpoint": "tcp://127.0.0.1:5555", "control": "tcp://127.0.0.1:5556"},
        }
        file = tmp_path / "robot.yaml"
        file.write_text(yaml.safe_dump(data, sort_keys=False))
        yield file


def test_a_profile_names_its_leader(profile: Path):
    assert [arm.kind for arm in load_profile(profile).leader] == ["so101_leader"]
    with Rig.open(profile) as rig:
        person = operator(rig, "leader")
        assert person.act(seen()).shape == (6,)
        person.close()
    data = yaml.safe_load(profile.read_text())
    del data["leader"]
    profile.write_text(yaml.safe_dump(data, sort_keys=False))
    with Rig.open(profile) as rig, pytest.raises(ConfigError, match="leader: missing, expected kind, port"):
        operator(rig, "leader")
