"""Nothing reaches the motors that the limits forbid: boundaries swept, and each fault one could plant is caught."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpolicy.robots.limits import JointLimit, LimitedArm, Limits
from hotpolicy.robots.robot import ArmState
from hotpolicy.runtime.errors import (
    BusLost,
    ConfigError,
    LimitViolation,
    ServoFault,
    ServoSilent,
    Stopped,
    StopUnconfirmed,
)
from hotpolicy.runtime.messages import Joint, RobotSpec

SPEC = RobotSpec((Joint("pan.pos", "deg", -90.0, 45.5), Joint("gripper.pos", "percent", 0.0, 100.0)), (), 10.0)
PAN, GRIPPER = SPEC.joints


class FollowingArm:
    """Is at once where it is sent, unless `stuck`. Knows no limits of its own; keeps what it was told."""

    def __init__(self, positions=(0.0, 50.0)):
        self.spec = SPEC
        self.positions = np.array(positions, dtype=np.float32)
        self.sent: list[np.ndarray] = []
        self.calls: list[str] = []
        self.stale: tuple[str, ...] = ()
        self.stuck = False
        self.fails: Exception | None = None

    def _call(self, name):
        self.calls.append(name)
        if self.fails:
            raise self.fails

    def read(self):
        self._call("read")
        return ArmState(self.positions.copy(), self.stale, {}, 0.0)

    def send(self, positions):
        self._call("send")
        self.sent.append(positions.copy())
        if not self.stuck:
            self.positions = positions.copy()

    def hold(self):
        self._call("hold")

    def torque(self, on):
        self._call(f"torque {on}")

    def close(self):
        self._call("close")


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def arm():
    return FollowingArm()


@pytest.fixture
def time():
    return Clock()


def limited(arm, time=None, max_step=(10.0, 1000.0), **settings):
    return LimitedArm(arm, Limits.of(SPEC, max_step, **settings), time or Clock())


def around(low, high):
    """Values dense at both ends of a range, sparse elsewhere."""
    near = [0.0, 1e-6, 1e-4, 0.01, 0.5, 1.0]
    values = [end + sign * delta for end in (low, high) for delta in near for sign in (-1, 1)]
    return [*values, (low + high) / 2, low - 1e3, high + 1e3, low - 1e30, high + 1e30]


# Range ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", around(PAN.low, PAN.high))
def test_the_range_is_kept_to_the_last_bit(arm, value):
    sent = limited(arm, max_step=1e9).send(np.array([value, 50.0]))
    assert PAN.low <= float(sent[0]) <= PAN.high
    assert sent[0] == pytest.approx(min(max(value, PAN.low), PAN.high), abs=1e-5)
    assert sent[1] == 50.0
    assert np.array_equal(arm.sent[0], sent)
    assert sent.dtype == np.float32


@pytest.mark.parametrize("bound", [0.1, 110.1, 1 / 3, 97.3, 80.2])
def test_bounds_that_float32_cannot_hold_are_rounded_inward(bound):
    arm = FollowingArm()
    limits = Limits((JointLimit(-bound, bound, 1e6), JointLimit(-bound, bound, 1e6)))
    guard = LimitedArm(arm, limits, Clock())
    sent = guard.send(np.array([1e9, -1e9]))
    assert float(sent[0]) <= bound
    assert float(sent[1]) >= -bound
    assert sent == pytest.approx([bound, -bound], rel=1e-6)


# Step -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", around(-10.0, 10.0))
def test_the_first_step_starts_from_where_the_arm_is(arm, value):
    assert limited(arm).send(np.array([value, 50.0]))[0] == pytest.approx(min(max(value, -10.0), 10.0), abs=1e-5)
    assert arm.calls == ["read", "send"]


@pytest.mark.parametrize("value", around(0.0, 20.0))
def test_the_next_step_starts_from_the_last_goal_and_not_from_the_arm(arm, value):
    arm.stuck = True
    guard = limited(arm)
    guard.send(np.array([10.0, 50.0]))
    assert guard.send(np.array([value, 50.0]))[0] == pytest.approx(min(max(value, 0.0), 20.0), abs=1e-5)
    assert arm.calls == ["read", "send", "send"]  # and without a lead to keep, no bus time is spent on reading


def test_each_joint_has_its_own_step(arm):
    guard = limited(arm, max_step=(1.0, 3.0))
    assert list(guard.send(np.array([45.0, 0.0]))) == [1.0, 47.0]
    assert list(guard.send(np.array([-45.0, 100.0]))) == [0.0, 50.0]


def test_an_arm_outside_its_range_starts_from_the_edge(arm):
    arm.positions[0] = 47.0
    assert limited(arm).send(np.array([0.0, 50.0]))[0] == pytest.approx(35.5)


@given(st.lists(st.tuples(*[st.floats(allow_nan=True, allow_infinity=True, width=32)] * 2), max_size=40))
def test_whatever_comes_the_arm_is_sent_small_steps_inside_its_range(actions):
    arm = FollowingArm()
    guard = limited(arm, max_step=(2.5, 7.0))
    previous = arm.positions.astype(float)
    for action in actions:
        count = len(arm.sent)
        if np.isfinite(action).all():
            sent = guard.send(np.array(action, dtype=np.float32)).astype(float)
            assert (np.abs(sent - previous) <= np.array([2.5, 7.0]) + 1e-5).all()
            assert PAN.low <= sent[0] <= PAN.high
            assert GRIPPER.low <= sent[1] <= GRIPPER.high
            previous = sent
        else:
            with pytest.raises(LimitViolation):
                guard.send(np.array(action, dtype=np.float32))
            assert len(arm.sent) == count


# Lead -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", around(-4.0, 4.0))
def test_the_goal_stays_near_the_arm(arm, value):
    arm.stuck = True
    guard = limited(arm, max_step=(3.0, 1000.0), max_lead=4.0)
    guard.send(np.array([value, 50.0]))
    sent = guard.send(np.array([value, 50.0]))
    assert sent[0] == pytest.approx(min(max(value, -4.0), 4.0), abs=1e-5)
    assert arm.calls == ["read", "send", "read", "send"]


def test_a_read_between_two_actions_is_enough_for_the_lead(arm):
    arm.stuck = True
    guard = limited(arm, max_lead=4.0)
    for _ in range(3):
        guard.read()
        guard.send(np.array([40.0, 50.0]))
    assert arm.calls.count("read") == 4  # one more to find the start
    assert arm.sent[-1][0] == 4.0


def test_one_joint_with_a_lead_is_enough_to_keep_it(arm):
    arm.stuck = True
    joints = (JointLimit(-90.0, 45.5, 3.0, max_lead=4.0), JointLimit(0.0, 100.0, 1000.0))
    guard = LimitedArm(arm, Limits(joints), Clock())
    for _ in range(3):
        sent = guard.send(np.array([40.0, 90.0]))
    assert list(sent) == [4.0, 90.0]


def test_the_goal_comes_back_to_the_arm_no_faster_than_a_step(arm):
    arm.stuck = True
    guard = limited(arm, max_step=(3.0, 1000.0), max_lead=4.0)
    for _ in range(2):
        guard.send(np.array([40.0, 50.0]))
    arm.positions[0] = -20.0  # pushed away
    assert guard.send(np.array([40.0, 50.0]))[0] == pytest.approx(1.0)
    assert guard.send(np.array([40.0, 50.0]))[0] == pytest.approx(-2.0)


# Refused --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "text"),
    [
        (np.array([np.nan, 50.0]), "action of pan.pos: expected a finite number, got nan; nothing was sent"),
        (np.array([0.0, np.inf]), "action of gripper.pos: expected a finite number, got inf"),
        (np.array([-np.inf, 50.0]), "action of pan.pos"),
        (np.zeros(3), r"expected shape \(2,\), got \(3,\)"),
        (np.zeros((1, 2)), "expected shape"),
        (np.zeros(1), "expected shape"),
        (np.array(0.0), "expected shape"),
        (np.array(["0", "1"]), "expected numbers"),
        (np.array([0.0, None]), "expected numbers"),
        (np.array([0, 1j]), "expected numbers"),
        (np.array([True, False]), "expected numbers, got bool"),
        ([[0.0], [1.0, 2.0]], "ragged"),
        (None, "expected shape"),
    ],
)
def test_what_is_no_action_is_refused_and_changes_nothing(arm, time, action, text):
    guard = limited(arm, time)
    guard.send(np.array([10.0, 50.0]))
    time.now += 0.4
    before = list(arm.calls)
    with pytest.raises(LimitViolation, match=text):
        guard.send(action)
    assert arm.calls == before
    time.now += 0.2
    assert guard.watchdog()  # it did not count as an action
    guard.send(np.array([10.0, 50.0]))


def test_integers_are_numbers(arm):
    assert list(limited(arm).send(np.array([3, 60]))) == [3.0, 60.0]


def test_a_silent_servo_gives_no_start(arm):
    arm.stale = ("pan.pos",)
    guard = limited(arm)
    with pytest.raises(ServoSilent, match=r"joint pan\.pos"):
        guard.send(np.array([0.0, 50.0]))
    assert arm.sent == []
    arm.stale = ()
    guard.send(np.array([0.0, 50.0]))
    arm.stale = ("pan.pos",)
    guard.send(np.array([0.0, 50.0]))  # the last goal is start enough


def test_after_a_failed_send_the_start_is_read_again(arm):
    guard = limited(arm)
    guard.send(np.array([10.0, 50.0]))
    arm.fails = BusLost("gone")
    with pytest.raises(BusLost):
        guard.send(np.array([20.0, 50.0]))
    arm.fails = None
    arm.positions[0] = -30.0
    assert guard.send(np.array([20.0, 50.0]))[0] == -20.0


def test_after_a_lost_bus_the_start_is_read_again(arm):
    guard = limited(arm)
    guard.send(np.array([10.0, 50.0]))
    arm.fails = BusLost("gone")
    with pytest.raises(BusLost):
        guard.read()
    arm.fails = None
    arm.positions[0] = -30.0
    assert guard.send(np.array([20.0, 50.0]))[0] == -20.0


# Watchdog -------------------------------------------------------------------------------------------------------------


def test_the_watchdog_holds_once_when_actions_stop(arm, time):
    guard = limited(arm, time, watchdog_s=0.5)
    assert not guard.watchdog()
    time.now += 10
    assert not guard.watchdog()  # nothing was ever started
    guard.send(np.array([5.0, 50.0]))
    for wait, held in ((0.25, False), (0.25, False), (0.0078125, True), (5.0, True)):  # exact in binary
        time.now += wait
        assert guard.watchdog() is held
        assert guard.holding is held
    assert arm.calls.count("hold") == 1
    guard.send(np.array([5.0, 50.0]))
    assert not guard.holding
    assert not guard.watchdog()
    time.now += 0.6
    assert guard.watchdog()
    assert arm.calls.count("hold") == 2


def test_every_accepted_action_feeds_the_watchdog(arm, time):
    guard = limited(arm, time)
    for _ in range(10):
        guard.send(np.array([5.0, 50.0]))
        time.now += 0.4
        assert not guard.watchdog()
    assert "hold" not in arm.calls


def test_a_hold_that_failed_is_tried_again(arm, time):
    guard = limited(arm, time)
    guard.send(np.array([5.0, 50.0]))
    time.now += 1
    arm.fails = BusLost("gone")
    for _ in range(2):
        with pytest.raises(BusLost):
            guard.watchdog()
    arm.fails = None
    assert guard.watchdog()
    assert arm.calls.count("hold") == 3


@pytest.mark.parametrize("event", ["watchdog", "hold", "torque"])
def test_after_a_stop_the_first_step_starts_from_where_the_arm_is(arm, time, event):
    guard = limited(arm, time)
    guard.send(np.array([10.0, 50.0]))
    if event == "watchdog":
        time.now += 1
        assert guard.watchdog()
    elif event == "hold":
        guard.hold()
    else:
        guard.torque(True)
    arm.positions[0] = -50.0  # sagged, or moved by hand
    assert guard.send(np.array([10.0, 50.0]))[0] == -40.0


@pytest.mark.parametrize("held", [False, True])
def test_an_arm_that_is_found_again_waits_for_its_first_action(arm, time, held):
    arm.reconnect = lambda: arm.calls.append("reconnect")
    guard = limited(arm, time)
    guard.send(np.array([0.0, 50.0]))
    time.now += 10.0 * held
    assert guard.watchdog() is held
    time.now += 10.0
    guard.reconnect()
    arm.calls.clear()
    assert not guard.watchdog()
    assert arm.calls == []


@pytest.mark.parametrize("end", [LimitedArm.stop, LimitedArm.freeze])
def test_there_is_nothing_to_watch_behind_a_stop(arm, time, end):
    guard = limited(arm, time)
    guard.send(np.array([0.0, 50.0]))
    end(guard, "fire")
    time.now += 10.0
    arm.calls.clear()
    assert not guard.watchdog()
    assert arm.calls == []


def test_a_stop_on_purpose_needs_no_watchdog(arm, time):
    guard = limited(arm, time)
    for stop in (guard.hold, lambda: guard.torque(False), lambda: guard.torque(True), guard.close):
        guard.send(np.array([0.0, 50.0]))
        stop()
        calls = list(arm.calls)
        time.now += 5
        assert not guard.watchdog()
        assert arm.calls == calls
    assert arm.calls[-1] == "close"
    assert "torque False" in arm.calls
    assert "torque True" in arm.calls


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: JointLimit(1.0, 1.0, 1.0),
        lambda: JointLimit(2.0, 1.0, 1.0),
        lambda: JointLimit(float("nan"), 1.0, 1.0),
        lambda: JointLimit(0.0, float("inf"), 1.0),
        lambda: JointLimit(0.0, 1.0, 0.0),
        lambda: JointLimit(0.0, 1.0, -1.0),
        lambda: JointLimit(0.0, 1.0, float("nan")),
        lambda: JointLimit(0.0, 1.0, 1.0, 0.0),
        lambda: JointLimit(0.0, 1.0, 1.0, float("nan")),
        lambda: Limits.of(SPEC, (1.0,)),
        lambda: Limits.of(SPEC, 1.0, watchdog_s=0.0),
        lambda: Limits.of(SPEC, 1.0, watchdog_s=float("nan")),
        lambda: LimitedArm(FollowingArm(), Limits((JointLimit(0.0, 1.0, 1.0),))),
    ],
)
def test_limits_that_are_none_are_refused(wrong):
    with pytest.raises(ConfigError, match="expected"):
        wrong()


def test_one_step_for_all(arm):
    assert [joint.max_step for joint in Limits.of(SPEC, 2).joints] == [2, 2]
    assert limited(arm).spec is SPEC


# Tool speed -----------------------------------------------------------------------------------------------------------

ARM3 = RobotSpec(
    (Joint("pan.pos", "deg", -90, 90), Joint("lift.pos", "deg", -90, 90), Joint("gripper.pos", "percent", 0, 100)),
    (),
    10,
)
LEVERS = (400.0, 200.0, 300.0)  # mm; the gripper's is of no account: percent turn nothing


def armed(tool_step, max_step=45.0):
    arm = FollowingArm((0.0, 0.0, 50.0))
    arm.spec = ARM3
    joints = [JointLimit(j.low, j.high, max_step, None, lever) for j, lever in zip(ARM3.joints, LEVERS, strict=True)]
    return arm, LimitedArm(arm, Limits(tuple(joints), tool_step=tool_step), Clock())


def travel(before, after):
    """The furthest the tool can have moved, mm, were the arm stretched out."""
    turned = np.abs(np.radians(np.asarray(after, np.float64)[:2] - np.asarray(before, np.float64)[:2]))
    return float(turned @ np.array(LEVERS[:2]))


@pytest.mark.parametrize("goal", [(45, 0, 50), (0, -45, 50), (45, 45, 100), (-3, 40, 0), (1, 1, 50), (0, 0, 90)])
def test_the_tool_keeps_to_its_speed_and_direction(goal):
    _, guard = armed(tool_step=25.0, max_step=60.0)
    sent = guard.send(np.array(goal, np.float64))
    assert travel((0, 0, 50), sent) <= 25.0 + 1e-4
    whole, share = np.array(goal) - (0, 0, 50), sent - np.array([0, 0, 50], np.float32)
    biggest = np.abs(whole).argmax()
    assert share == pytest.approx(whole * share[biggest] / whole[biggest], abs=1e-4)  # all joints, alike
    if travel((0, 0, 50), goal) > 25:
        assert travel((0, 0, 50), sent) == pytest.approx(25.0, abs=1e-3)  # no slower than it has to
    else:
        assert sent == pytest.approx(goal)


@given(st.lists(st.tuples(*[st.floats(-1e3, 1e3)] * 3), min_size=1, max_size=8))
def test_whatever_comes_the_tool_never_goes_faster(goals):
    arm, guard = armed(tool_step=10.0)
    before = arm.positions
    for goal in goals:
        sent = guard.send(np.array(goal))
        assert travel(before, sent) <= 10.0 + 1e-3
        before = sent


def test_without_a_cap_the_steps_alone_count():
    _, guard = armed(tool_step=np.inf)
    assert guard.send(np.array([90.0, 90, 50])) == pytest.approx([45, 45, 50])


# Waiting for actions --------------------------------------------------------------------------------------------------


def waiting(arm, time, fallback, **settings):
    limits = Limits.of(SPEC, (10.0, 1000.0), watchdog_s=0.5)
    limits = replace(limits, fallback=fallback, fallback_s=2.0, safe_pose=(30.0, 20.0), **settings)
    guard = LimitedArm(arm, limits, time)
    guard.torque(True)
    guard.send(np.array([0.0, 50.0]))
    arm.calls.clear()
    return guard


def test_waiting_holds_once_and_then_stays(arm, time):
    guard = waiting(arm, time, "hold")
    for _ in range(5):
        assert guard.wait() is None
        time.now += 10
    assert arm.calls.count("hold") == 1
    assert guard.holding
    assert "torque False" not in arm.calls


def test_after_a_while_it_goes_to_the_safe_pose_step_by_step(arm, time):
    guard = waiting(arm, time, "safe_pose")
    assert guard.wait() is None
    time.now += 2.0
    assert guard.wait() is None  # not longer than fallback_s yet
    time.now += 0.1
    assert [guard.wait().tolist() for _ in range(4)] == [[10, 20], [20, 20], [30, 20], [30, 20]]
    assert guard.holding  # still for want of actions
    guard.send(np.array([30.0, 20.0]))
    assert not guard.holding
    assert guard.wait() is None  # the time begins anew


def test_steps_to_the_safe_pose_keep_their_pace_whoever_asks(arm, time):
    guard = waiting(arm, time, "safe_pose", tick_s=0.1)
    guard.wait()
    time.now += 2.1
    assert guard.wait() is not None
    assert guard.wait() is None
    assert guard.watchdog()
    assert len(arm.sent) == 2  # the action, and one step
    time.now += 0.11
    assert guard.watchdog()
    assert len(arm.sent) == 3


def test_after_a_while_it_lets_go_once(arm, time):
    guard = waiting(arm, time, "release")
    guard.wait()
    time.now += 2.1
    for _ in range(3):
        guard.wait()
    assert arm.calls.count("torque False") == 1
    assert not guard.torque_on


def test_the_watchdog_alone_leads_on_to_the_fallback(arm, time):
    guard = waiting(arm, time, "safe_pose")
    time.now += 0.6
    assert guard.watchdog()
    assert arm.calls == ["read", "hold"] or arm.calls == ["hold"]
    time.now += 2.1
    guard.watchdog()
    assert arm.sent[-1].tolist() == [10.0, 20.0]


def test_a_hold_on_purpose_is_no_waiting(arm, time):
    guard = waiting(arm, time, "safe_pose")
    guard.wait()
    guard.hold()
    time.now += 100
    assert not guard.watchdog()
    assert len(arm.sent) == 1


# Emergency stop -------------------------------------------------------------------------------------------------------


def test_a_stop_releases_and_nothing_is_sent_until_it_is_cleared(arm, time):
    guard = waiting(arm, time, "safe_pose")
    guard.stop("hand caught")
    assert arm.calls == ["torque False"]
    for act in (lambda: guard.send(np.zeros(2)), lambda: guard.torque(True), guard.require_clear):
        with pytest.raises(Stopped, match=r"emergency stop \(hand caught\): look at the arm"):
            act()
    guard.wait()
    time.now += 100
    guard.wait()  # no safe pose either
    guard.watchdog()
    guard.torque(False)  # but it may be released again
    assert len(arm.sent) == 1
    assert "torque True" not in arm.calls
    assert not guard.torque_on
    guard.latch.reason = None
    guard.torque(True)
    guard.send(np.zeros(2))
    assert len(arm.sent) == 2


def test_a_frozen_arm_holds_and_is_latched_too(arm, time):
    guard = waiting(arm, time, "hold")
    guard.freeze("twice")
    assert arm.calls == ["hold"]
    assert guard.torque_on
    with pytest.raises(Stopped, match="twice"):
        guard.send(np.zeros(2))


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_a_stop_is_tried_again_and_a_failed_one_is_loud(arm, time, failures):
    guard = waiting(arm, time, "hold")
    left = [ServoFault("gripper stays on")] * failures

    def torque(on):
        arm.calls.append(f"torque {on}")
        if left:
            raise left.pop()

    arm.torque = torque
    if failures < 3:
        guard.stop("fire")
        assert len(arm.calls) == failures + 1
    else:
        with pytest.raises(StopUnconfirmed, match=r"stop \(fire\): torque may still be on, cut the power: gripper"):
            guard.stop("fire")
        assert len(arm.calls) == 3
    with pytest.raises(Stopped):  # latched either way
        guard.send(np.zeros(2))


def test_no_goal_slips_out_behind_a_stop(arm, time):
    """The stop comes while a goal is on its way: it waits for that one, and the next is refused."""
    guard = waiting(arm, time, "hold")
    sending, go_on = threading.Event(), threading.Event()
    plain = arm.send

    def slow(positions):
        sending.set()
        go_on.wait(5)
        plain(positions)

    arm.send = slow
    mover = threading.Thread(target=guard.send, args=(np.array([5.0, 50.0]),))
    mover.start()
    sending.wait(5)
    stopper = threading.Thread(target=guard.stop, args=("now",))
    stopper.start()
    while guard.latch.reason is None:
        pass
    assert "torque False" not in arm.calls
    go_on.set()
    mover.join(5)
    stopper.join(5)
    assert arm.calls[-2:] == ["send", "torque False"]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: JointLimit(0, 1, 1, None, -1.0),
        lambda: JointLimit(0, 1, 1, None, float("nan")),
        lambda: replace(Limits.of(SPEC, 1.0), tool_step=0.0),
        lambda: replace(Limits.of(SPEC, 1.0), tool_step=float("nan")),
        lambda: replace(Limits.of(SPEC, 1.0), fallback="jump"),
        lambda: replace(Limits.of(SPEC, 1.0), fallback="safe_pose"),
        lambda: replace(Limits.of(SPEC, 1.0), fallback_s=0.0),
        lambda: replace(Limits.of(SPEC, 1.0), fallback_s=float("inf")),
        lambda: replace(Limits.of(SPEC, 1.0), tick_s=-1.0),
        lambda: replace(Limits.of(SPEC, 1.0), safe_pose=(0.0,)),
        lambda: replace(Limits.of(SPEC, 1.0), safe_pose=(46.0, 0.0)),
        lambda: replace(Limits.of(SPEC, 1.0), safe_pose=(0.0, float("nan"))),
    ],
)
def test_settings_of_the_last_resort_are_checked(wrong):
    with pytest.raises(ConfigError, match="expected"):
        wrong()


def test_it_remembers_where_it_stood_before_it_was_moved(arm, time):
    guard = limited(arm, time)
    assert guard.rest_pose is None
    guard.torque(True)
    guard.send(np.array([5.0, 50.0]))
    guard.send(np.array([9.0, 60.0]))
    assert guard.rest_pose.tolist() == [0.0, 50.0]
    guard.torque(True)  # from here on that is another place
    assert guard.rest_pose is None
    guard.send(np.array([0.0, 0.0]))
    assert guard.rest_pose.tolist() == [9.0, 60.0]


def test_a_stopped_arm_does_not_carry_itself(arm, time):
    guard = limited(arm, time)
    guard.torque(True)
    assert guard.torque_on
    guard.stop("fire")
    assert not guard.torque_on
