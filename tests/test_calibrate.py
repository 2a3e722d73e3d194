"""Calibrating an arm by hand: the numbers, the conversation, and what is refused."""

from __future__ import annotations

import os
import pty

import pytest
from calling import call

from hotpolicy.launch.calibrate import guide
from hotpolicy.robots.arms.catalogue import ARMS, arm_table
from hotpolicy.robots.arms.koch import KOCH_LEADER
from hotpolicy.robots.arms.so import SO101_FOLLOWER, SO101_LEADER
from hotpolicy.robots.calibration import JointCalibration, find_calibration, read_calibration, whose, write_calibration
from hotpolicy.robots.servo.arm import connect
from hotpolicy.robots.servo.bus import ServoBus, Timing
from hotpolicy.robots.servo.calibrator import HALF_TURN, Calibrator
from hotpolicy.robots.sim.dynamixel import VirtualDynamixels
from hotpolicy.robots.sim.pty import VirtualPort, serve
from hotpolicy.robots.sim.servos import VirtualBus
from hotpolicy.runtime.errors import CalibrationError, ConfigError, ServoSilent, WrongServo

PATIENT = Timing(margin_ms=300, budget_ms=2000)
MIDDLES = (1900, 2100, 2047, 1500, 3000, 2500)  # ticks, where each joint's servo is when the joint is in its middle


def blank(table):
    return {row.name: JointCalibration(row.id, 0, 0, 0, 4095) for row in table.servos}


def put(virtual, ticks):
    for servo, at in zip(virtual.servos, ticks, strict=True):
        servo.present_ticks = at


def sweep(virtual, calibrator, reach=900):
    """A hand moves every joint to both ends and back."""
    for way in (-reach, 2 * reach, -reach):
        put(virtual, [servo.present_ticks + way for servo in virtual.servos])
        calibrator.watch()


@pytest.fixture(autouse=True)
def folders(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path / "calibration"))
    return tmp_path / "calibration"


@pytest.fixture
def virtual():
    return VirtualBus.from_calibration(blank(SO101_FOLLOWER))


@pytest.fixture
def port(virtual, tmp_path):
    with serve(virtual, VirtualPort(tmp_path / "arm")) as port:
        yield port


@pytest.fixture
def calibrator(port):
    with ServoBus(port.path, PATIENT, SO101_FOLLOWER.family.protocol()) as bus:
        yield Calibrator(bus, SO101_FOLLOWER)


def test_the_middle_reads_half_a_turn_and_the_ends_are_where_the_hand_went(virtual, calibrator, port):
    calibrator.begin()
    put(virtual, MIDDLES)
    calibrator.centre()
    assert {seen.now for seen in calibrator.seen.values()} == {HALF_TURN}
    sweep(virtual, calibrator)
    calibration = calibrator.finish()
    assert [joint.homing_offset for joint in calibration.values()] == [at - HALF_TURN for at in MIDDLES]
    ends = {name: (joint.range_min, joint.range_max) for name, joint in calibration.items()}
    assert ends.pop("wrist_roll") == (0, 4095)  # nothing stops it
    assert set(ends.values()) == {(HALF_TURN - 900, HALF_TURN + 900)}
    calibrator.bus.close()
    connect(port.path, calibration, timing=PATIENT).close()  # the servos hold what the file says


def test_a_koch_leader_counts_the_other_way_and_turns_its_elbow_round(tmp_path):
    virtual = VirtualDynamixels.from_table(KOCH_LEADER, blank(KOCH_LEADER))
    with (
        serve(virtual, VirtualPort(tmp_path / "arm")) as port,
        ServoBus(port.path, PATIENT, KOCH_LEADER.family.protocol()) as bus,
    ):
        calibrator = Calibrator(bus, KOCH_LEADER)
        calibrator.check()
        calibrator.begin()
        put(virtual, MIDDLES)
        calibrator.centre()
        assert {seen.now for seen in calibrator.seen.values()} == {HALF_TURN}
        sweep(virtual, calibrator)
        calibration = calibrator.finish()
        bus.close()
        connect(port.path, calibration, table=KOCH_LEADER, timing=PATIENT).close()
    assert calibration["shoulder_lift"].homing_offset == HALF_TURN - MIDDLES[1]
    assert {name: joint.drive_mode for name, joint in calibration.items() if joint.drive_mode} == {"elbow_flex": 1}


def test_joints_that_were_not_moved_are_named(virtual, calibrator):
    calibrator.begin()
    calibrator.centre()
    calibrator.watch()
    for servo in virtual.servos[:4]:
        servo.present_ticks += 400
    calibrator.watch()
    with pytest.raises(CalibrationError, match=r"from end to end, these were not: gripper$"):
        calibrator.finish()


def test_a_middle_that_no_servo_can_hold_is_refused(virtual, calibrator):
    calibrator.begin()
    put(virtual, [4095] + [2000] * 5)
    with pytest.raises(CalibrationError, match=r"joint shoulder_pan: expected within 2047 ticks .* it is at 4095"):
        calibrator.centre()


def test_a_range_that_leaves_the_turn_is_refused(virtual, calibrator):
    calibrator.begin()
    put(virtual, [2047] * 6)
    calibrator.centre()
    sweep(virtual, calibrator)
    calibrator.seen["gripper"].low = -5
    with pytest.raises(CalibrationError, match=r"joint gripper: expected ticks within 0\.\.4095, it went from -5"):
        calibrator.finish()


def test_watching_needs_a_middle(calibrator):
    with pytest.raises(CalibrationError, match="the middle of the joints first"):
        calibrator.watch()


def test_another_arm_is_refused_before_anything_is_asked(port):
    with (
        ServoBus(port.path, PATIENT, KOCH_LEADER.family.protocol()) as bus,
        pytest.raises(WrongServo, match=r"expected 1: .*XL330.*; found no servo at all"),
    ):
        Calibrator(bus, KOCH_LEADER).check()


# The conversation -----------------------------------------------------------------------------------------------------


class Hand:
    """Presses the keys of a script, and moves the arm as it is told to."""

    def __init__(self, virtual, *steps):
        self.virtual, self.steps = virtual, list(steps)

    def __call__(self):
        step = self.steps.pop(0)
        if isinstance(step, str):
            return [step]
        by = [servo.present_ticks + step for servo in self.virtual.servos] if isinstance(step, int) else step
        put(self.virtual, by)
        return []


def test_the_guided_calibration(virtual, calibrator, capsys):
    ends = (HALF_TURN - 800, HALF_TURN + 700)
    hand = Hand(virtual, "enter", MIDDLES, "enter", "enter", -800, 1500, -700, "enter")
    said = []
    calibration = guide(calibrator, hand, said.append)
    assert [text.split(",")[0] for text in said] == [
        "The arm will go limp. Hold it",
        "Put every joint in the middle of its range",
        "Move every joint slowly from end to end",
    ]
    assert (calibration["gripper"].range_min, calibration["gripper"].range_max) == ends
    out = capsys.readouterr().out
    assert all(text in out for text in ("shoulder_pan", "highest", "ok"))


def test_an_impossible_middle_is_said_and_asked_for_again(virtual, calibrator):
    hand = Hand(virtual, "enter", [4095, *MIDDLES[1:]], "enter", MIDDLES, "enter", -800, 1500, 0, "enter", "enter")
    said = []
    guide(calibrator, hand, said.append)
    assert any("it is at 4095" in text for text in said)


def test_escape_gives_up(virtual, calibrator):
    with pytest.raises(CalibrationError, match="given up"):
        guide(calibrator, Hand(virtual, "escape"), lambda text: None)


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command_writes_where_lerobot_looks(virtual, port, folders, monkeypatch, capsys):
    inside, outside = pty.openpty()
    monkeypatch.setattr("hotpolicy.robots.teleop.terminal._standard_input", lambda: outside)
    monkeypatch.setattr("hotpolicy.launch.calibrate.guide", lambda calibrator, keys: blank(calibrator.table))
    verb = ("calibrate", "--arm", "so101_leader", "--port", port.path, "--id", "red")
    code, out, _ = call(capsys, monkeypatch, *verb)
    file = folders / "teleoperators/so_leader/red.json"
    assert (code, str(file) in out.replace("\n", "")) == (0, True)
    assert read_calibration(file) == blank(SO101_LEADER)
    assert find_calibration("red", SO101_LEADER.calibration_names, "teleoperators") == file
    code, _, err = call(capsys, monkeypatch, *verb)
    assert (code, "is there already" in err) == (2, True)
    os.close(inside)
    os.close(outside)


def test_a_file_can_be_pushed_to_the_servos(virtual, port, folders, monkeypatch, capsys):
    file = {name: JointCalibration(j.id, 0, 7 * j.id, 800, 3000) for name, j in blank(SO101_FOLLOWER).items()}
    write_calibration(folders / "robots/so_follower/blue.json", file)
    verb = ("calibrate", "--arm", "so101_follower", "--port", port.path, "--id", "blue", "--push")
    with pytest.raises(CalibrationError, match=r"hotpolicy calibrate --push"):
        connect(port.path, "blue", timing=PATIENT)
    virtual.servos[3].poke("torque", 1)
    code, _, err = call(capsys, monkeypatch, *verb)
    assert (code, "expected a released arm" in err) == (2, True)
    virtual.servos[3].poke("torque", 0)
    assert call(capsys, monkeypatch, *verb)[0] == 0
    connect(port.path, "blue", timing=PATIENT).close()


def test_without_a_terminal_nothing_is_asked(port, monkeypatch, capsys):
    reader, writer = os.pipe()
    monkeypatch.setattr("hotpolicy.robots.teleop.terminal._standard_input", lambda: reader)
    code, _, err = call(capsys, monkeypatch, "calibrate", "--arm", "so101_leader", "--port", port.path, "--id", "red")
    assert (code, "expected a terminal" in err) == (2, True)
    os.close(reader)
    os.close(writer)


def test_arms_by_name():
    assert arm_table("koch_leader") is KOCH_LEADER
    with pytest.raises(ConfigError, match=r"arm: expected one of so101_follower, .*, got 'so102'"):
        arm_table("so102")
    assert all(table.servos and table.calibration_names for table in ARMS.values())


# Arms on each other's ports -------------------------------------------------------------------------------------------


def test_swapped_arms_are_recognised_by_their_calibration(folders, tmp_path):
    mine = {name: JointCalibration(j.id, 0, 10 * j.id, 900, 3100) for name, j in blank(SO101_FOLLOWER).items()}
    other = {name: JointCalibration(j.id, 0, -20 * j.id, 800, 3000) for name, j in blank(SO101_FOLLOWER).items()}
    write_calibration(folders / "robots/so_follower/blue.json", mine)
    write_calibration(folders / "robots/so101_follower/white.json", other)
    (folders / "robots/so_follower/broken.json").write_text("{")
    with serve(VirtualBus.from_calibration(other), VirtualPort(tmp_path / "arm")) as port:
        with pytest.raises(CalibrationError) as caught:
            connect(port.path, "blue", timing=PATIENT)
        text = str(caught.value)
        assert "joint shoulder_pan: homing_offset is 10 in the file and -20 in the servo (and 17 more)" in text
        assert "this port has the arm calibrated as white" in text
        connect(port.path, "white", timing=PATIENT).close()
    assert whose(blank(SO101_FOLLOWER)) == []


def test_a_silent_servo_ends_it_by_name(virtual, calibrator):
    virtual.inject("silent", id=3)
    with pytest.raises(ServoSilent, match="servo 3"):
        calibrator.begin()
