"""Arms of Dynamixels, from limits to bytes, against virtual servos: what differs from Feetech's, and how it fails."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from hotpolicy.robots.arms.interbotix import VIPERX_300, WIDOWX_250_LEADER
from hotpolicy.robots.arms.koch import KOCH_FOLLOWER, KOCH_LEADER
from hotpolicy.robots.calibration import JointCalibration
from hotpolicy.robots.limits import LimitedArm, Limits
from hotpolicy.robots.servo.arm import ServoArm, connect
from hotpolicy.robots.servo.bus import ServoBus, Timing
from hotpolicy.robots.servo.dynamixel import DYNAMIXEL, WATCHDOG_S, Dynamixel
from hotpolicy.robots.servo.dynamixel_registers import XSERIES, Mode
from hotpolicy.robots.sim.dynamixel import VirtualDynamixel, VirtualDynamixels
from hotpolicy.robots.sim.pty import VirtualPort, serve
from hotpolicy.runtime.errors import BusLost, CalibrationError, LimitViolation, ServoFault, WrongServo

PATIENT = Timing(margin_ms=300, budget_ms=2000)
BRISK = Timing(margin_ms=80, budget_ms=400)
SIX = tuple(range(1, 7))
POSITION = (132, 4)
PAUSE_S = WATCHDOG_S + 0.2


def calibrate(table, offsets=(0,), reverse=()):
    return {
        row.name: JointCalibration(row.id, int(row.name in reverse), offsets[i % len(offsets)], 1000, 3000)
        for i, row in enumerate(table.servos)
    }


CALIBRATION = calibrate(KOCH_FOLLOWER, offsets=(0, 158, -710, 1021, 0, -12), reverse=("wrist_flex",))


@pytest.fixture
def virtual():
    return VirtualDynamixels.from_table(KOCH_FOLLOWER, CALIBRATION)


@pytest.fixture
def port(virtual, tmp_path):
    with serve(virtual, VirtualPort(tmp_path / "arm"), step_ticks=100) as port:
        yield port


@pytest.fixture
def bus(port):
    with ServoBus(port.path, BRISK, Dynamixel()) as bus:
        yield bus


@pytest.fixture
def arm(port):
    arm = connect(port.path, CALIBRATION, table=KOCH_FOLLOWER, timing=PATIENT)
    yield arm
    arm.bus.close()


def goals(virtual, arm):
    """What the servos drive to, once they have heard all that was sent."""
    arm.bus.ping(1)
    return [servo.goal_ticks for servo in virtual.servos]


# The bus --------------------------------------------------------------------------------------------------------------


def positions(replies):
    return {servo: int.from_bytes(reply.data, "little", signed=True) for servo, reply in replies.by_id.items()}


def test_reading_and_writing(virtual, bus):
    for servo in virtual.servos:
        servo.present_ticks = 1000 + servo.id
    assert positions(bus.sync_read(SIX, *POSITION)) == {i: 1000 + i for i in SIX}
    assert bus.ping(3) == (b"\xb0\x04\x2f", 0)
    assert bus.write(3, 64, b"\x01") == 0
    assert bus.write(3, 11, b"\x04") == 7  # EEPROM, and torque is on
    bus.sync_write(116, {i: (1500 + i).to_bytes(4, "little") for i in SIX})
    assert bus.read(2, 116, 4).data == (1502).to_bytes(4, "little")
    assert bus.scan() == {row.id: row.model for row in KOCH_FOLLOWER.joints}
    assert bus.protocol.fast
    assert bus.counts.retries == bus.counts.damaged == bus.counts.missed == 0


@pytest.mark.parametrize("kind", ["drop", "corrupt", "truncate", "noise", "foreign"])
def test_one_spoilt_answer_costs_a_repetition_and_nothing_else(virtual, bus, kind):
    bus.sync_read(SIX, *POSITION)
    for servo in SIX:
        virtual.inject(kind, id=servo, times=1)
        replies = bus.sync_read(SIX, *POSITION)
        assert (positions(replies), replies.missing) == (dict.fromkeys(SIX, 2000), ())
        virtual.clear()
        assert bus.sync_read(SIX, *POSITION).missing == ()
    assert bus.counts.missed == 0
    assert bus.protocol.fast


def test_a_silent_servo_costs_nobody_else(virtual, bus):
    bus.sync_read(SIX, *POSITION)
    virtual.inject("silent", id=2)
    for _ in range(4):
        replies = bus.sync_read(SIX, *POSITION)
        assert (sorted(replies.by_id), replies.missing) == ([1, 3, 4, 5, 6], (2,))
    virtual.clear()
    while bus.sync_read(SIX, *POSITION).missing:
        pass
    assert bus.protocol.fast


def test_echo_late_and_split_answers(virtual, bus):
    virtual.inject("split", id=4, times=1, delay_s=0.02)
    assert bus.sync_read(SIX, *POSITION).missing == ()
    virtual.inject("late", id=5, times=1, delay_s=0.4)
    assert 5 in bus.sync_read(SIX, *POSITION).missing
    virtual.servo(5).present_ticks = 1234
    while (replies := bus.sync_read(SIX, *POSITION)).missing:
        assert positions(replies).get(5, 1234) == 1234  # never what was late
    assert positions(replies)[5] == 1234
    bus.line.echo = None
    virtual.inject("echo")
    for _ in range(3):
        assert bus.sync_read(SIX, *POSITION).missing == ()
        assert bus.write(1, 65, b"\1") == 0
    assert bus.echo is True


def test_old_firmware_is_noticed_and_read_the_plain_way(port, virtual):
    virtual.servo(4).fast = False
    arm = connect(port.path, CALIBRATION, table=KOCH_FOLLOWER, timing=BRISK)
    assert not arm.bus.protocol.fast
    before = arm.bus.counts.questions
    assert arm.read().stale == ()
    assert arm.bus.counts.questions == before + 1
    arm.close()


# The arm --------------------------------------------------------------------------------------------------------------


def test_a_koch_from_connecting_to_motion(virtual, port, arm):
    guard = LimitedArm(arm, Limits.of(arm.spec, max_step=20.0))
    assert goals(virtual, arm) == [None] * 6
    guard.torque(True)
    assert goals(virtual, arm) == [2000.0] * 6
    held = [(servo.peek("mode"), servo.peek("return_delay"), servo.peek("bus_watchdog")) for servo in virtual.servos]
    assert held == [(Mode.EXTENDED, 0, 25)] * 5 + [(Mode.CURRENT_POSITION, 0, 25)]
    assert [virtual.servo(3).peek(f"position_{gain}_gain") for gain in "pid"] == [1500, 0, 600]
    ten = np.array([10, 10, 10, 10, 10, 60], dtype=np.float32)
    guard.send(ten)
    # wrist_flex counts backwards: the same ticks on the bus, the other way round in the world
    assert goals(virtual, arm) == [2113.0] * 5 + [2200.0]
    deadline = time.monotonic() + 10
    while abs(guard.read().positions - ten).max() > 0.1:
        assert time.monotonic() < deadline
    guard.close()
    assert [servo.torque for servo in virtual.servos] == [True] * 6
    assert [servo.peek("bus_watchdog") for servo in virtual.servos] == [0] * 6  # the next program may not know it


def test_releasing_disarms(virtual, arm):
    arm.torque(True)
    arm.torque(False)
    assert goals(virtual, arm) == [None] * 6
    assert [servo.peek("bus_watchdog") for servo in virtual.servos] == [0] * 6
    with pytest.raises(LimitViolation, match="torque on before a goal"):
        arm.send(np.zeros(6, np.float32))


def test_torque_on_with_a_stale_goal_moves_nothing(virtual, arm):
    for servo in virtual.servos:
        servo.poke("goal_position", 2900)
    arm.torque(True)
    assert goals(virtual, arm) == [2000.0] * 6


def test_the_wrong_model_is_named(virtual, port):
    virtual.servo(5).poke("model", 1190)
    with pytest.raises(WrongServo, match=r"expected .*5: XL330-M288 \(1200\).* found .*5: XL330-M077 \(1190\)"):
        connect(port.path, CALIBRATION, table=KOCH_FOLLOWER, timing=PATIENT)


def test_a_servo_that_counts_the_other_way_than_its_file_is_refused_and_can_be_set(virtual, port):
    virtual.servo(4).poke("drive_mode", 4)  # bit 0 is the direction; bit 2 is not ours
    with pytest.raises(CalibrationError, match="joint wrist_flex: drive_mode is 1 in the file and 0 in the servo"):
        connect(port.path, CALIBRATION, table=KOCH_FOLLOWER, timing=PATIENT)
    connect(port.path, CALIBRATION, table=KOCH_FOLLOWER, timing=PATIENT, write=True).close()
    assert virtual.servo(4).peek("drive_mode") == 5


def test_an_overload_is_named_and_torque_needs_a_reboot(virtual, arm):
    arm.torque(True)
    virtual.inject("overload", id=6)
    assert arm.read().faults == {"gripper.pos": ("hardware alert", "overload")}
    with pytest.raises(ServoFault, match="expected torque on, it stays off at gripper"):
        arm.torque(True)
    arm.bus.reboot(6)
    arm.torque(True)
    assert arm.read().faults == {}


def test_a_setting_that_the_servo_does_not_take_keeps_torque_off(virtual, arm):
    virtual.servo(1).poke("min_position", 0)
    first, *others = KOCH_FOLLOWER.joints
    odd = replace(KOCH_FOLLOWER, joints=(replace(first, settings=(("mode", Mode.CURRENT),)), *others))
    with pytest.raises(ServoFault, match="expected mode 0, it holds 3"):
        ServoArm(arm.bus, odd, CALIBRATION).torque(True)
    assert goals(virtual, arm) == [None] * 6


def test_unplug_and_back(virtual, port, arm):
    arm.torque(True)
    port.unplug()
    with pytest.raises(BusLost):
        arm.read()
    port.replug()
    arm.reconnect()
    assert arm.torque_on
    arm.send(np.full(6, 10, np.float32))
    assert goals(virtual, arm)[0] == 2113.0


# The bus watchdog -----------------------------------------------------------------------------------------------------


def test_a_program_that_hangs_lets_the_servos_stop(virtual, arm):
    arm.torque(True)
    for servo in virtual.servos:
        servo.advance = lambda ticks: None  # stuck on the way
    arm.send(np.full(6, 20, np.float32))
    time.sleep(PAUSE_S)
    assert [servo.goal_ticks for servo in virtual.servos] == [2000.0] * 6
    assert all(servo.tripped for servo in virtual.servos)


def test_after_a_pause_the_arm_says_so_once_and_goes_on(virtual, arm):
    arm.torque(True)
    time.sleep(PAUSE_S)
    assert virtual.servo(1).tripped or virtual.servo(1).goal_ticks == 2000.0
    state = arm.read()
    assert state.faults == {f"{row.name}.pos": ("bus watchdog",) for row in KOCH_FOLLOWER.joints}
    assert goals(virtual, arm) == [2000.0] * 6
    assert arm.read().faults == {}
    arm.send(np.full(6, 10, np.float32))
    assert goals(virtual, arm)[0] == 2113.0


def test_a_goal_straight_after_a_pause_is_taken(virtual, arm):
    arm.torque(True)
    time.sleep(PAUSE_S)
    arm.send(np.full(6, 10, np.float32))
    assert goals(virtual, arm)[0] == 2113.0


def test_a_servo_that_was_off_the_bus_for_long_is_armed_again(virtual, port):
    arm = connect(port.path, CALIBRATION, table=KOCH_FOLLOWER, timing=BRISK)
    arm.torque(True)
    arm.read()
    virtual.inject("silent", id=2)
    deadline = time.monotonic() + PAUSE_S
    while time.monotonic() < deadline:
        assert arm.read().stale == ("shoulder_lift.pos",)
    assert virtual.servo(2).goal_ticks == 2000.0
    assert virtual.servo(2).tripped
    virtual.clear()
    while (state := arm.read()).stale:
        pass
    assert state.faults == {"shoulder_lift.pos": ("bus watchdog",)}
    arm.send(np.full(6, 10, np.float32))
    assert goals(virtual, arm)[1] == 2113.0
    arm.close()


def test_an_arm_found_energised_is_armed_before_it_moves(virtual, port):
    for servo in virtual.servos:
        servo.poke("torque", 1)
        servo.poke("bus_watchdog", -1 if servo.id == 3 else 0)
    arm = connect(port.path, CALIBRATION, table=KOCH_FOLLOWER, timing=PATIENT)
    assert arm.torque_on
    assert arm.read().faults == {"elbow_flex.pos": ("bus watchdog",)}
    assert [servo.peek("bus_watchdog") for servo in virtual.servos] == [25] * 6
    arm.close()


# Turns ----------------------------------------------------------------------------------------------------------------


def test_turns_forgotten_without_power_are_counted_again(virtual, port):
    """The calibrated range crosses the end of the servo's own turn, and power came on beyond it."""
    elbow = virtual.servo(3)
    elbow.poke("position_offset", -2600)
    elbow._saved = elbow.memory[:64]
    elbow._frame = (1, -2600)
    calibration = {**CALIBRATION, "elbow_flex": JointCalibration(3, 0, -2600, 1000, 3000)}
    elbow.present_ticks = 1700.0  # 4300 of the servo's own ticks
    elbow.power_cycle()
    assert elbow.peek("present_position") == 1700 - 4096
    arm = connect(port.path, calibration, table=KOCH_FOLLOWER, timing=PATIENT)
    assert arm.read().positions[2] == pytest.approx(-300 * 360 / 4095)
    arm.torque(True)
    assert goals(virtual, arm)[2] == 1700.0
    arm.send(np.zeros(6, np.float32))
    assert goals(virtual, arm)[2] == 2000.0
    arm.close()


def test_a_joint_that_no_turn_brings_home_is_not_switched_on(virtual, arm):
    virtual.servo(3).present_ticks = 3600.0
    with pytest.raises(LimitViolation, match="joint elbow_flex: expected at ticks"):
        arm.torque(True)


# Leaders and shadows --------------------------------------------------------------------------------------------------


def test_a_leader_is_released_when_connected(tmp_path):
    calibration = calibrate(KOCH_LEADER, reverse=("elbow_flex",))
    virtual = VirtualDynamixels.from_table(KOCH_LEADER, calibration)
    for servo in virtual.servos:
        servo.poke("torque", 1)
    with serve(virtual, VirtualPort(tmp_path / "leader")) as port:
        arm = connect(port.path, calibration, table=KOCH_LEADER, timing=PATIENT)
        assert [servo.torque for servo in virtual.servos] == [False] * 6
        arm.close()


@pytest.fixture
def viper(tmp_path):
    calibration = calibrate(VIPERX_300, reverse=("shoulder_shadow", "elbow_shadow"))
    virtual = VirtualDynamixels.from_table(VIPERX_300, calibration)
    with serve(virtual, VirtualPort(tmp_path / "viper"), step_ticks=100) as port:
        arm = connect(port.path, calibration, table=VIPERX_300, timing=PATIENT)
        yield virtual, arm
        arm.bus.close()


def test_shadows_follow_their_joint(viper):
    virtual, arm = viper
    assert [joint.name for joint in arm.spec.joints] == [f"{row.name}.pos" for row in VIPERX_300.joints]
    arm.torque(True)
    assert [virtual.servo(i).peek("shadow_id") for i in (2, 3, 4, 5)] == [255, 2, 255, 4]
    assert len(arm.read().positions) == 7
    arm.send(np.array([0, 10, -10, 0, 0, 0, 50], np.float32))
    arm.bus.ping(1)
    assert [virtual.servo(i).goal_ticks for i in (2, 3, 4, 5)] == [2113.0, 2113.0, 1886.0, 1886.0]
    assert arm.read().faults == {}
    arm.torque(False)
    arm.bus.ping(1)
    assert not any(servo.torque for servo in virtual.servos)


def test_shadows_that_disagree_are_reported_and_never_switched_on(viper):
    virtual, arm = viper
    virtual.servo(3).present_ticks += 100
    assert list(arm.read().faults) == ["shoulder.pos"]
    with pytest.raises(LimitViolation, match=r"joint shoulder: shoulder_shadow is \+8.8 deg from it"):
        arm.torque(True)
    virtual.servo(3).present_ticks -= 100
    arm.torque(True)
    virtual.inject("silent", id=5)
    assert arm.read().stale == ("elbow.pos",)


def test_every_table_is_sound():
    for table in (KOCH_FOLLOWER, KOCH_LEADER, VIPERX_300, WIDOWX_250_LEADER):
        ids = [row.id for row in table.servos]
        assert len(set(ids)) == len(ids)
        names = {row.name for row in table.joints}
        for row in table.servos:
            assert row.model in DYNAMIXEL.models
            for name, value in row.settings:
                XSERIES[name].encode(value)
            assert row.follows is None or row.follows in names
            servo = VirtualDynamixel(row.id, model=row.model)
            for name, value in row.settings:
                assert servo.write(XSERIES[name].address.to_bytes(2, "little") + XSERIES[name].encode(value)) == 0
