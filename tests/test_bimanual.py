"""Two arms as one, each on a virtual bus of its own: one Koch, one SO-101."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hotpolicy.robots.arms.koch import KOCH_FOLLOWER
from hotpolicy.robots.arms.so import SO101_FOLLOWER
from hotpolicy.robots.bimanual import BimanualArm
from hotpolicy.robots.calibration import JointCalibration
from hotpolicy.robots.limits import LimitedArm, Limits
from hotpolicy.robots.robot import Arm
from hotpolicy.robots.servo.arm import connect
from hotpolicy.robots.servo.bus import Timing
from hotpolicy.robots.sim.dynamixel import VirtualDynamixels
from hotpolicy.robots.sim.pty import VirtualPort, serve
from hotpolicy.robots.sim.servos import VirtualBus
from hotpolicy.runtime.errors import BusLost, ConfigError, LimitViolation, ServoFault
from hotpolicy.runtime.messages import RobotSpec

PATIENT = Timing(margin_ms=300, budget_ms=2000)
CALIBRATION = {row.name: JointCalibration(row.id, 0, 0, 1000, 3000) for row in KOCH_FOLLOWER.joints}
STAY = np.array([0, 0, 0, 0, 0, 50] * 2, np.float32)


@pytest.fixture
def wires():
    return VirtualDynamixels.from_table(KOCH_FOLLOWER, CALIBRATION), VirtualBus.from_calibration(CALIBRATION)


@pytest.fixture
def ports(wires, tmp_path):
    left, right = wires
    with serve(left, VirtualPort(tmp_path / "l")) as one, serve(right, VirtualPort(tmp_path / "r")) as other:
        yield one, other


@pytest.fixture
def halves(ports):
    tables = (KOCH_FOLLOWER, SO101_FOLLOWER)
    arms = [connect(p.path, CALIBRATION, table=t, timing=PATIENT) for p, t in zip(ports, tables, strict=True)]
    yield arms
    for arm in arms:
        arm.bus.close()


@pytest.fixture
def arm(halves):
    return BimanualArm(*halves)


def goals(wires, halves):
    for half in halves:
        half.bus.ping(1)  # behind whatever was sent
    return [[servo.goal_ticks for servo in wire.servos] for wire in wires]


def test_two_arms_are_driven_as_one(wires, halves, arm):
    guard: Arm = LimitedArm(arm, Limits.of(arm.spec, max_step=20.0))
    names = [joint.name for joint in arm.spec.joints]
    assert (names[0], names[6], len(names)) == ("left_shoulder_pan.pos", "right_shoulder_pan.pos", 12)
    guard.torque(True)
    action = STAY.copy()
    action[0], action[6] = 10, -10
    guard.send(action)
    assert [side[0] for side in goals(wires, halves)] == [2113.0, 1886.0]
    assert guard.read().positions.shape == (12,)
    wires[0].servo(6).errors = 1 << 2
    assert guard.read().faults == {"left_gripper.pos": ("hardware alert", "overheat")}
    wires[1].inject("silent", id=2)
    assert guard.read().stale == ("right_shoulder_lift.pos",)
    guard.close()
    assert not any(half.bus.is_open for half in halves)
    assert all(servo.torque for servo in wires[0].servos if servo.id != 6)


def test_a_lost_arm_holds_the_other(wires, ports, halves, arm):
    """Whichever it is, and whatever was being done."""
    for lost in (0, 1):
        arm.torque(True)
        arm.send(STAY + 5)
        ports[lost].unplug()
        time.sleep(0.1)  # until the thread behind the port has let go of it too
        with pytest.raises(BusLost):
            (arm.read if lost else lambda: arm.send(STAY + 10))()
        halves[1 - lost].bus.ping(1)
        assert [servo.goal_ticks for servo in wires[1 - lost].servos] == [2000.0] * 6
        ports[lost].replug()
        arm.reconnect()


def test_torque_comes_on_at_both_or_neither(wires, halves, arm):
    wires[1].servo(3).present_ticks = 3500.0  # outside of its range
    with pytest.raises(LimitViolation, match="elbow_flex"):
        arm.torque(True)
    assert goals(wires, halves) == [[None] * 6] * 2
    assert not arm.torque_on
    halves[0].torque(True)  # on before, so it stays on
    with pytest.raises(LimitViolation):
        arm.torque(True)
    assert goals(wires, halves) == [[2000.0] * 6, [None] * 6]


def test_release_is_tried_at_both(wires, halves, arm):
    arm.torque(True)
    halves[0].bus.line.timing = Timing(margin_ms=50, retries=0)
    wires[0].inject("drop")  # does what it is told and never says so
    with pytest.raises(ServoFault, match="expected torque off"):
        arm.torque(False)
    wires[0].clear()
    assert not any(servo.torque for wire in wires for servo in wire.servos)


def test_a_goal_for_a_released_half_moves_neither(wires, halves, arm):
    halves[0].torque(True)
    with pytest.raises(LimitViolation, match="torque on before a goal"):
        arm.send(STAY + 5)
    assert goals(wires, halves) == [[2000.0] * 6, [None] * 6]


def test_a_spec_must_name_the_joints_of_both(halves):
    left = halves[0].spec
    with pytest.raises(ConfigError, match="joints of two arms: expected"):
        BimanualArm(*halves, spec=left)
    halves[0].spec = RobotSpec(left.joints, (), 50.0)
    with pytest.raises(ConfigError, match=r"expected the same, got 50\.0 and 30\.0 Hz"):
        BimanualArm(*halves)
