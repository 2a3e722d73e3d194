"""How an arm is switched on and off when something is wrong: each way out of it has an end state that is told."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from hotpolicy.robots.arms.so import SO100_LEADER, SO101_FOLLOWER, SO101_LEADER
from hotpolicy.robots.calibration import JointCalibration
from hotpolicy.robots.servo.arm import connect
from hotpolicy.robots.servo.bus import Timing
from hotpolicy.robots.sim.pty import VirtualPort, serve
from hotpolicy.robots.sim.servos import OVERLOAD, VirtualBus
from hotpolicy.runtime.errors import LimitViolation, ServoFault, ServoSilent

BRISK = Timing(margin_ms=80, budget_ms=400)
CALIBRATION = {row.name: JointCalibration(row.id, 0, 0, 1000, 3000) for row in SO101_FOLLOWER.joints}
SIX = tuple(range(1, 7))


@pytest.fixture
def virtual():
    return VirtualBus.from_calibration(CALIBRATION)


@pytest.fixture
def port(virtual):
    with serve(virtual, VirtualPort()) as port:
        yield port


@pytest.fixture
def arm(port):
    arm = connect(port.path, CALIBRATION, timing=BRISK)
    yield arm
    arm.bus.close()


def torques(virtual) -> list[bool]:
    return [servo.torque for servo in virtual.servos]


# On -------------------------------------------------------------------------------------------------------------------


def when_written(servo, act) -> None:
    """Call `act` just after the servo was written to."""
    original = servo._after_write

    def spy(touched, was_on):
        original(touched, was_on)
        act()

    servo._after_write = spy


def test_half_an_arm_is_not_left_under_torque(virtual, arm):
    """A cable comes loose while the joints are switched on one after another."""
    when_written(virtual.servo(3), lambda: virtual.inject("silent", id=5))
    with pytest.raises(ServoSilent, match="servo 5"):
        arm.torque(True)
    assert torques(virtual) == [False] * 6
    assert not arm.torque_on
    with pytest.raises(LimitViolation):
        arm.send(np.zeros(6, np.float32))


def test_joints_that_held_before_go_on_holding(virtual, arm):
    for i in (1, 2):
        virtual.servo(i).poke("torque", 1)
    when_written(virtual.servo(3), lambda: virtual.inject("silent", id=5))
    with pytest.raises(ServoSilent, match="servo 5"):
        arm.torque(True)
    assert torques(virtual) == [True, True, False, False, False, False]


def test_a_joint_that_stays_off_is_named_and_the_others_let_go(virtual, arm):
    when_written(virtual.servo(4), lambda: virtual.servo(4).poke("torque", 0))
    with pytest.raises(ServoFault, match="expected torque on, it stays off at wrist_flex"):
        arm.torque(True)
    assert torques(virtual) == [False] * 6


def test_faults_are_told_while_switching(virtual, arm, caplog):
    virtual.servo(6).overload()
    arm.torque(True)
    assert any("joint gripper reports overload" in text for text in caplog.messages)
    assert torques(virtual) == [True] * 6


def test_settings_are_written_once_and_stay(virtual, arm):
    gripper, elbow = virtual.servo(6), virtual.servo(3)
    assert (elbow.peek("p_gain"), gripper.peek("max_torque")) == (32, 1000)  # as they left the factory
    arm.torque(True)
    assert (elbow.peek("p_gain"), elbow.peek("d_gain"), elbow.peek("max_torque")) == (16, 32, 1000)
    assert [gripper.peek(name) for name in ("max_torque", "protection_current", "overload_torque")] == [500, 250, 25]
    for servo in (gripper, elbow):
        assert servo.peek("lock") == 1
        servo.power_cycle()
        assert servo.peek("p_gain") == 16
    assert gripper.strength == 0.5
    for servo in virtual.servos:
        servo.poke("torque", 0)
        servo.poke("acceleration", 254)  # forgotten with the power
        servo.poke("max_acceleration", 254)
    fed = virtual.bytes_in
    arm.torque(True)
    assert virtual.bytes_in - fed < 1500  # read, compared, and left


# Off ------------------------------------------------------------------------------------------------------------------


def test_a_hold_whose_packet_is_lost_is_sent_again(virtual, arm):
    arm.torque(True)
    for servo in virtual.servos:
        servo.poke("goal_position", 2500)
    original, lost = virtual._sync_write, []

    def lossy(data):
        if lost:
            original(data)
        lost.append(data)

    virtual._sync_write = lossy
    arm.hold()
    assert [servo.goal_ticks for servo in virtual.servos] == [2000] * 6
    assert len(lost) == 2


def test_a_hold_that_nobody_confirms_is_told(virtual, arm, caplog):
    arm.torque(True)
    virtual._sync_write = lambda data: None
    for servo in virtual.servos[1:]:
        servo.poke("goal_position", 2500)
    arm.hold()
    assert any("no sign that shoulder_lift, elbow_flex" in text for text in caplog.messages)


@pytest.mark.parametrize("kind", ["corrupt", "drop", "truncate", "noise", "foreign"])
def test_letting_go_on_a_bad_bus(virtual, arm, kind):
    arm.torque(True)
    for servo in virtual.servos:
        servo.errors = OVERLOAD
    for i in SIX:
        virtual.inject(kind, id=i, times=2)
    arm.close(release=True)
    assert torques(virtual) == [False] * 6
    assert not arm.bus.is_open


def test_letting_go_of_those_that_answer_and_naming_the_rest(virtual, arm):
    arm.torque(True)
    arm.read()
    virtual.inject("silent", id=5)
    virtual.inject("corrupt", id=2, times=1)
    with pytest.raises(ServoFault, match="expected torque off, it is on or unknown at wrist_roll"):
        arm.close(release=True)
    assert torques(virtual) == [False, False, False, False, True, False]
    assert not arm.bus.is_open


def test_a_position_that_is_unknown_does_not_keep_an_arm_from_being_let_go(virtual, port):
    arm = connect(port.path, CALIBRATION, timing=BRISK)
    arm.torque(True)
    arm._sensing.forget()
    fault = virtual.inject("silent", id=5)
    fault.times = 4  # gone while it is to hold, back when it is to let go
    arm.close(release=True)
    assert torques(virtual) == [False] * 6


def test_unplugged_in_the_middle_of_letting_go(virtual, port, arm, caplog):
    arm.torque(True)
    when_written(virtual.servo(2), lambda: virtual.inject("unplug"))
    arm.close(release=True)
    assert any("closing without letting go" in text for text in caplog.messages)
    assert not arm.bus.is_open


# A leader -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [SO101_LEADER, SO100_LEADER])
def test_a_leader_is_released_when_it_is_connected(virtual, port, table):
    for servo in virtual.servos:
        servo.poke("torque", 1)
    arm = connect(port.path, CALIBRATION, table=table, timing=BRISK)
    assert torques(virtual) == [False] * 6
    assert arm.read().positions[0] == 0
    arm.close()
    assert torques(virtual) == [False] * 6


def test_a_leader_is_calibrated_while_a_program_left_it_under_torque(virtual, port):
    virtual.servo(1).poke("torque", 1)
    other = {name: dataclasses.replace(joint, homing_offset=7) for name, joint in CALIBRATION.items()}
    connect(port.path, other, table=SO101_LEADER, timing=BRISK, write=True).close()
    assert virtual.servo(1).peek("position_offset") == 7


def test_a_leader_can_follow_when_asked_to(virtual, port):
    arm = connect(port.path, CALIBRATION, table=SO101_LEADER, timing=BRISK)
    arm.torque(True)
    arm.send(np.array([10, 0, 0, 0, 0, 50], np.float32))
    arm.bus.ping(1)
    assert virtual.servo(1).goal_ticks == 2113
    assert virtual.servo(6).peek("max_torque") == 1000  # nothing of it is set
    arm.close(release=True)


@pytest.mark.parametrize("folder", ["so_leader", "so101_leader", "so100_leader"])
def test_a_leaders_file_lies_among_the_teleoperators(port, monkeypatch, tmp_path, folder):
    monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path))
    file = tmp_path / "teleoperators" / folder / "blue.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({name: dataclasses.asdict(joint) for name, joint in CALIBRATION.items()}))
    connect(port.path, "blue", table=SO101_LEADER, timing=BRISK).close()
