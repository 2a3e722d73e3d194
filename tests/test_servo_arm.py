"""The whole driver, from limits to bytes, against the virtual arm: what works, and how each failure ends."""

from __future__ import annotations

import dataclasses
import json
import threading
import time

import numpy as np
import pytest

from hotpolicy.robots.arms.so import SO101_FOLLOWER
from hotpolicy.robots.calibration import JointCalibration
from hotpolicy.robots.limits import LimitedArm, Limits
from hotpolicy.robots.robot import Arm
from hotpolicy.robots.servo.arm import ServoArm, connect
from hotpolicy.robots.servo.bus import Timing
from hotpolicy.robots.servo.joints import REST_TOLERANCE
from hotpolicy.robots.sim.pty import VirtualPort, serve
from hotpolicy.robots.sim.servos import VirtualBus
from hotpolicy.runtime.errors import (
    BusBusy,
    BusLost,
    CalibrationError,
    ConfigError,
    LimitViolation,
    ServoFault,
    ServoSilent,
    WrongServo,
)
from hotpolicy.runtime.messages import Joint, RobotSpec

PATIENT = Timing(margin_ms=300, budget_ms=2000)
BRISK = Timing(margin_ms=80, budget_ms=400)
OFFSETS = (0, 158, -710, 1021, 0, -12)
CALIBRATION = {
    row.name: JointCalibration(row.id, 0, offset, 1000, 3000)
    for row, offset in zip(SO101_FOLLOWER.joints, OFFSETS, strict=True)
}
TEN_DEGREES = np.array([10, 10, 10, 10, 10, 50], dtype=np.float32)


@pytest.fixture
def virtual():
    return VirtualBus.from_calibration(CALIBRATION)


@pytest.fixture
def port(virtual, tmp_path):
    with serve(virtual, VirtualPort(tmp_path / "arm"), step_ticks=100) as port:
        yield port


@pytest.fixture
def arm(port):
    arm = connect(port.path, CALIBRATION, timing=PATIENT)
    yield arm
    arm.bus.close()


@pytest.fixture
def brisk(port):
    arm = connect(port.path, CALIBRATION, timing=BRISK)
    yield arm
    arm.bus.close()


def goals(virtual, arm):
    """What the servos drive to, once they have heard all that was sent."""
    arm.bus.ping(1)
    return [servo.goal_ticks for servo in virtual.servos]


RELEASED = [None] * 6


def test_an_arm_from_calibration_file_to_motion(virtual, port, tmp_path):
    file = tmp_path / "blue.json"
    file.write_text(json.dumps({name: dataclasses.asdict(joint) for name, joint in CALIBRATION.items()}))
    arm = connect(port.path, file, timing=PATIENT)
    assert [joint.name for joint in arm.spec.joints][::5] == ["shoulder_pan.pos", "gripper.pos"]
    assert arm.spec.joints[0].high == pytest.approx(1000 * 360 / 4095)
    assert arm.spec.joints[5] == Joint("gripper.pos", "percent", 0.0, 100.0)
    guard = LimitedArm(arm, Limits.of(arm.spec, max_step=20.0))
    assert not arm.torque_on
    assert goals(virtual, arm) == RELEASED
    guard.torque(True)
    assert goals(virtual, arm) == [2000.0] * 6  # where it was
    assert np.array_equal(guard.send(TEN_DEGREES), TEN_DEGREES)
    assert goals(virtual, arm) == [2113.0] * 5 + [2000.0]
    deadline = time.monotonic() + 10
    while abs(guard.read().positions - TEN_DEGREES).max() > 0.1:
        assert time.monotonic() < deadline
    state = guard.read()
    assert (state.stale, dict(state.faults), state.positions.dtype) == ((), {}, np.float32)
    guard.close()
    assert [servo.torque for servo in virtual.servos] == [True] * 6


def test_a_narrower_spec_comes_from_the_profile(port):
    joints = tuple(Joint(f"{row.name}.pos", row.unit, 0.0, 10.0) for row in SO101_FOLLOWER.joints)
    arm = connect(port.path, CALIBRATION, spec=RobotSpec(joints, (), 10.0), timing=PATIENT)
    assert arm.spec.joints == joints
    arm.close()
    with pytest.raises(ConfigError, match="joints of a so101_follower: expected"):
        connect(port.path, CALIBRATION, spec=RobotSpec(joints[:5], (), 10.0))


# Connecting -----------------------------------------------------------------------------------------------------------


def test_wrong_port(tmp_path):
    with pytest.raises(BusLost, match="there is none"):
        connect(str(tmp_path / "no-arm"), CALIBRATION)


def test_missing_calibration(port, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path))
    with pytest.raises(CalibrationError, match="calibration of 'blue': not found in"):
        connect(port.path, "blue")


def test_a_missing_servo_is_listed(virtual, port):
    del virtual.servos[1]
    with pytest.raises(WrongServo) as caught:
        connect(port.path, CALIBRATION, timing=BRISK)
    assert "expected 1: STS3215 (777), 2: STS3215 (777)" in str(caught.value)
    assert "found 1: STS3215 (777), 3: STS3215 (777)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_servo_of_another_model(virtual, port):
    virtual.servo(6).poke("model", 1284)
    with pytest.raises(WrongServo, match=r"found .* 6: SCS0009 \(1284\)"):
        connect(port.path, CALIBRATION, timing=PATIENT)
    virtual.servo(6).poke("model", 777)
    connect(port.path, CALIBRATION, timing=PATIENT).close()  # the port was given back


def test_no_servo_at_all(virtual, port):
    virtual.servos.clear()
    with pytest.raises(WrongServo, match="found no servo at all"):
        connect(port.path, CALIBRATION, timing=BRISK)


def test_servos_of_another_number_are_listed(virtual, port):
    for servo in virtual.servos:
        servo.poke("id", servo.id + 10)
    with pytest.raises(WrongServo, match="found 11: STS3215"):
        connect(port.path, CALIBRATION, timing=BRISK)


@pytest.mark.parametrize(
    ("register", "value", "text"),
    [
        ("position_offset", 159, "joint shoulder_lift: homing_offset is 158 in the file and 159 in the servo"),
        ("min_position", 0, "joint shoulder_lift: range_min is 1000 in the file and 0 in the servo"),
        ("max_position", 4095, "joint shoulder_lift: range_max is 3000 in the file and 4095 in the servo"),
    ],
)
def test_a_calibration_that_differs_is_refused(virtual, port, register, value, text):
    virtual.servo(2).poke(register, value)
    with pytest.raises(CalibrationError, match=text):
        connect(port.path, CALIBRATION, timing=PATIENT)


def test_a_calibration_can_be_written_and_stays(virtual, port):
    others = {name: dataclasses.replace(joint, homing_offset=-5) for name, joint in CALIBRATION.items()}
    with pytest.raises(CalibrationError, match=r"homing_offset is -5 .*\(and 5 more\)"):
        connect(port.path, others, timing=PATIENT)
    connect(port.path, others, timing=PATIENT, write=True).close()
    for servo in virtual.servos:
        assert servo.peek("lock") == 1
        servo.power_cycle()
        assert servo.peek("position_offset") == -5


def test_a_calibration_is_not_written_to_an_arm_under_torque(virtual, port):
    virtual.servo(3).poke("torque", 1)
    with pytest.raises(CalibrationError, match=r"expected a released arm .* torque is on at elbow_flex"):
        connect(port.path, CALIBRATION, timing=PATIENT, write=True)
    assert virtual.servo(1).peek("lock") == 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"id": 9}, "expected servo 3, the calibration says 9"),
        ({"homing_offset": 2048}, r"homing_offset: expected -2047\.\.2047, got 2048"),
        ({"range_max": 4096}, r"range_max: expected 0\.\.4095, got 4096"),
        (None, "joint elbow_flex: expected in the calibration, found shoulder_pan"),
    ],
)
def test_a_calibration_of_another_arm(port, change, text):
    joints = dict(CALIBRATION)
    if change is None:
        del joints["elbow_flex"]
    else:
        joints["elbow_flex"] = dataclasses.replace(joints["elbow_flex"], **change)
    with pytest.raises(CalibrationError, match=text):
        connect(port.path, joints)


def test_a_second_opener(port, arm):
    with pytest.raises(BusBusy, match="another hotpolicy program"):
        connect(port.path, CALIBRATION)
    assert arm.read().stale == ()


# Torque ---------------------------------------------------------------------------------------------------------------


def test_no_goal_reaches_a_released_arm(virtual, arm):
    fed = virtual.bytes_in
    with pytest.raises(LimitViolation, match="expected torque on before a goal"):
        arm.send(TEN_DEGREES)
    arm.hold()
    assert virtual.bytes_in == fed
    assert goals(virtual, arm) == RELEASED


@pytest.mark.parametrize("firmware", ["stale", "present"])
def test_torque_on_never_jumps(virtual, arm, firmware):
    for servo in virtual.servos:
        servo.goal_on_torque = firmware
        servo.poke("goal_position", 2900)  # left from before
        servo.present_ticks = 1500 + servo.id
    seen = []
    for servo in virtual.servos:
        original = servo._after_write

        def spy(touched, was_on, original=original, servo=servo):
            original(touched, was_on)
            seen.append((servo.id, servo.goal_ticks))

        servo._after_write = spy  # every moment is looked at, not only the end
    arm.torque(True)
    assert arm.torque_on
    assert len(seen) == 12
    assert all(goal in (None, 1500 + servo) for servo, goal in seen)


@pytest.mark.parametrize("past", [-1, 0, 1])
@pytest.mark.parametrize(("end", "outward"), [(1000, -1), (3000, 1)])
def test_torque_on_checks_where_the_arm_is(virtual, arm, end, outward, past):
    at = end + outward * (REST_TOLERANCE + past)
    virtual.servo(4).present_ticks = at
    if past > 0:
        with pytest.raises(LimitViolation, match=rf"joint wrist_flex: expected at ticks 1000\.\.3000 .* at {at}"):
            arm.torque(True)
        assert goals(virtual, arm) == RELEASED
    else:
        arm.torque(True)
        assert virtual.servo(4).goal_ticks == end


def test_torque_on_needs_every_joint(virtual, brisk):
    virtual.inject("silent", id=5)
    with pytest.raises(ServoSilent, match=r"joint wrist_roll \(servo 5\)"):
        brisk.torque(True)
    assert not brisk.torque_on
    assert goals(virtual, brisk) == RELEASED


def test_torque_off_releases_and_says_who_did_not(virtual, brisk):
    brisk.torque(True)
    virtual.inject("silent", id=5)
    virtual.inject("drop", id=2, times=1)
    with pytest.raises(ServoFault, match="expected torque off, it is on or unknown at wrist_roll"):
        brisk.torque(False)
    assert not brisk.torque_on
    assert [servo.torque for servo in virtual.servos] == [False] * 4 + [True, False]
    virtual.clear()
    brisk.torque(False)
    assert goals(virtual, brisk) == RELEASED


def test_torque_off_obeys_even_with_errors_reported(virtual, arm):
    arm.torque(True)
    for servo in virtual.servos:
        servo.errors = 0x20
    arm.torque(False)
    assert goals(virtual, arm) == RELEASED


def test_torque_is_found_as_it_was_left(virtual, port, arm):
    arm.torque(True)
    arm.close()
    again = connect(port.path, CALIBRATION, timing=PATIENT)
    assert again.torque_on
    again.close(release=True)
    assert [servo.torque for servo in virtual.servos] == [False] * 6
    assert not again.bus.is_open


# Driving --------------------------------------------------------------------------------------------------------------


def test_goals_are_cut_to_the_calibrated_ticks(virtual, arm):
    arm.torque(True)
    arm.send(np.array([179, -179, 0, 0, 0, 101], dtype=np.float32))
    assert goals(virtual, arm) == [3000, 1000, 2000, 2000, 2000, 3000]
    assert [servo.peek("goal_position") for servo in virtual.servos][:2] == [3000, 1000]


def test_hold_stops_where_the_arm_is(virtual, arm):
    arm.torque(True)
    for servo in virtual.servos:
        servo.advance = lambda ticks: None
        servo.poke("goal_position", 2500)
        servo.present_ticks = 1700 + servo.id
    arm.hold()
    assert goals(virtual, arm) == [1701, 1702, 1703, 1704, 1705, 1706]


def test_the_watchdog_holds_the_real_arm(virtual, port):
    arm = connect(port.path, CALIBRATION, timing=PATIENT)
    guard = LimitedArm(arm, Limits.of(arm.spec, max_step=90.0, watchdog_s=0.1))
    guard.torque(True)
    for servo in virtual.servos:
        servo.advance = lambda ticks: None  # too slow to get there
    guard.send(np.array([60, 60, 60, 60, 60, 90]))
    time.sleep(0.15)
    assert guard.watchdog()
    assert goals(virtual, arm) == [2000.0] * 6
    guard.close()


def test_a_silent_joint_is_stale_and_the_others_go_on(virtual, brisk):
    brisk.torque(True)
    brisk.read()
    virtual.inject("silent", id=3)
    brisk.send(TEN_DEGREES)
    deadline = time.monotonic() + 10
    while True:
        state = brisk.read()
        assert state.stale == ("elbow_flex.pos",)
        assert state.positions[2] == 0.0  # the last known
        if state.positions[0] > 9.8:
            break
        assert time.monotonic() < deadline
    brisk.hold()
    assert virtual.servo(3).goal_ticks == 2000
    virtual.clear()
    while brisk.read().stale:
        assert time.monotonic() < deadline
    assert brisk.torque_on


def test_a_position_nobody_knows_is_an_error(virtual, brisk):
    virtual.inject("silent", id=3)
    with pytest.raises(ServoSilent, match="joint elbow_flex: expected a position"):
        brisk.read()


def test_a_servo_that_lost_power_stops_the_arm(virtual, brisk):
    brisk.torque(True)
    brisk.read()
    fault = virtual.inject("silent", id=3)
    assert brisk.read().stale
    virtual.servo(3).power_cycle()
    fault.times = 0
    deadline = time.monotonic() + 10
    while brisk.read().stale:
        assert time.monotonic() < deadline
    with pytest.raises(LimitViolation, match="torque"):
        brisk.send(TEN_DEGREES)
    assert virtual.servo(3).goal_ticks is None
    brisk.torque(True)
    brisk.send(TEN_DEGREES)


def test_faults_are_named(virtual, arm):
    virtual.servo(6).errors = 0b100100
    assert dict(arm.read().faults) == {"gripper.pos": ("overheat", "overload")}


def test_glitches_are_not_seen_by_the_caller(virtual, brisk):
    brisk.torque(True)
    for kind in ("drop", "corrupt", "truncate", "noise", "foreign"):
        virtual.inject(kind, id=2, times=1)
        state = brisk.read()
        assert state.stale == ()
        assert abs(state.positions[:5]).max() == 0.0


def test_unplugged_and_plugged_in_again(virtual, port, brisk):
    guard = LimitedArm(brisk, Limits.of(brisk.spec, max_step=5.0))
    guard.torque(True)
    guard.send(TEN_DEGREES)
    port.unplug()
    with pytest.raises(BusLost):
        guard.read()
    with pytest.raises(BusLost):
        brisk.reconnect()
    port.replug()
    for servo in virtual.servos:
        servo.advance = lambda ticks: None
        servo.present_ticks = 1800
    brisk.reconnect()
    assert brisk.torque_on
    sent = guard.send(TEN_DEGREES)
    assert sent[0] < -12  # one step from where the arm is now: no jump
    guard.close()


def test_another_arm_behind_the_same_port_is_noticed(virtual, port, brisk):
    port.unplug()
    with pytest.raises(BusLost):
        brisk.read()
    virtual.servo(1).poke("position_offset", 77)
    port.replug()
    with pytest.raises(CalibrationError, match="joint shoulder_pan: homing_offset is 0 in the file and 77"):
        brisk.reconnect()
    assert not brisk.torque_on


def test_closing_a_dead_arm_is_safe(port, arm):
    arm.torque(True)
    port.unplug()
    arm.close()
    arm.close(release=True)
    assert not arm.bus.is_open


def test_threads_take_turns_on_the_bus(arm):
    arm.torque(True)
    troubles = []

    def work(call):
        try:
            for _ in range(30):
                call()
        except Exception as error:  # noqa: BLE001  # whatever it is, the test reports it
            troubles.append(error)

    threads = [threading.Thread(target=work, args=(call,)) for call in (arm.read, lambda: arm.send(TEN_DEGREES))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert troubles == []
    assert arm.bus.counts.retries == 0


def test_the_arm_is_an_arm(arm):
    driven: Arm = arm
    assert isinstance(driven, ServoArm)
