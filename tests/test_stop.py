"""Ending well: emergency stops proven or loud, parking, Ctrl-C once and twice, with servos on a real port."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import time

import msgpack
import numpy as np
import pytest
import yaml
import zmq
from calling import call

from hotpolicy.launch import rig as rig_module
from hotpolicy.launch.profile_file import load_profile
from hotpolicy.launch.rig import Rig
from hotpolicy.robots.arms.so import SO101_FOLLOWER
from hotpolicy.robots.calibration import JointCalibration, write_calibration
from hotpolicy.robots.limits import LimitedArm, Limits
from hotpolicy.robots.park import park
from hotpolicy.robots.servo.arm import connect
from hotpolicy.robots.servo.bus import Timing
from hotpolicy.robots.sim.pty import VirtualPort, serve
from hotpolicy.robots.sim.servos import VirtualBus
from hotpolicy.robots.stop import FileLatch, Sentry, ask_stop, stop_endpoint
from hotpolicy.robots.teleop.keyboard import KeyboardOperator
from hotpolicy.robots.teleop.stop_key import StopKey
from hotpolicy.robots.teleop.terminal import Terminal
from hotpolicy.runtime import durable
from hotpolicy.runtime.clock import Rate
from hotpolicy.runtime.errors import BusLost, CalibrationError, ConfigError, Stopped, StopUnconfirmed
from hotpolicy.runtime.messages import Observation

CALIBRATION = {row.name: JointCalibration(row.id, 0, 0, 1000, 3000) for row in SO101_FOLLOWER.joints}
BRISK = Timing(margin_ms=80, budget_ms=400)
AWAY = np.array([40, 0, 0, 0, 0, 50], np.float32)  # deg and percent


@pytest.fixture(autouse=True)
def folders(monkeypatch, tmp_path):
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def virtual():
    return VirtualBus.from_calibration(CALIBRATION)


@pytest.fixture
def port(virtual, tmp_path):
    with serve(virtual, VirtualPort(tmp_path / "arm"), step_ticks=60) as port:
        yield port


@pytest.fixture
def arm(port):
    bare = connect(port.path, CALIBRATION, timing=BRISK)
    guard = LimitedArm(bare, Limits.of(bare.spec, 20.0), latch=FileLatch("blue"))
    yield guard
    bare.bus.close()


@pytest.fixture
def profile(port, tmp_path):
    """Of the arm on `port`, 50 ticks a second."""
    write_calibration(tmp_path / "blue.json", CALIBRATION)
    data = {
        "name": "blue",
        "rate_hz": 50,
        "arm": {"port": port.path, "baudrate": 1_000_000, "calibration": "blue.json"},
        "joints": {
            row.name: {"unit": row.unit, "low": 0 if row.unit == "percent" else -80, "high": 80, "max_step": 1}
            for row in SO101_FOLLOWER.joints
        },
        "cameras": {},
        "watchdog_s": 0.3,
        "tool_speed": 20000,
        "server": {"endpoint": "tcp://127.0.0.1:5555", "control": "tcp://127.0.0.1:5556"},
    }
    file = tmp_path / "robot.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return file


def torque(virtual):
    return {servo.torque for servo in virtual.servos}


def eventually(condition, within_s=10.0):
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)


# The latch ------------------------------------------------------------------------------------------------------------


def test_a_stop_outlives_its_program_until_a_human_clears_it(arm):
    assert FileLatch("blue").reason is None
    arm.torque(True)
    arm.stop("fire")
    again = FileLatch("blue")
    assert again.reason == "fire"
    assert FileLatch("red").reason is None
    assert (again.clear(), again.reason, again.clear()) == ("fire", None, None)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "\udcff"])
def test_a_stop_that_cannot_be_read_is_still_a_stop(content):
    latch = FileLatch("blue")
    latch.set("fire")
    latch.file.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert "unreadable" in FileLatch("blue").reason


def test_a_full_disk_does_not_keep_the_arm_from_stopping(monkeypatch, arm, virtual, caplog):
    def full(*what):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "replace_file", full)
    arm.torque(True)
    arm.stop("fire")
    assert torque(virtual) == {False}
    assert "not remembered" in caplog.text
    with pytest.raises(Stopped):
        arm.torque(True)


# The socket -----------------------------------------------------------------------------------------------------------


def test_anyone_on_this_machine_can_stop_the_arm_and_gets_proof(arm, virtual):
    arm.torque(True)
    with Sentry(arm, "blue"):
        assert ask_stop("blue", "hand caught")
        assert torque(virtual) == {False}
        with pytest.raises(Stopped, match="hand caught"):
            arm.send(AWAY)
        assert ask_stop("blue", "again")  # a second time proves it again
    assert not ask_stop("blue", "nobody drives it now", timeout_s=0.2)


def test_a_stop_that_cannot_be_proven_is_said(arm, virtual, caplog):
    arm.torque(True)
    with Sentry(arm, "blue", watch=False):
        virtual.inject("silent", id=3)
        with pytest.raises(StopUnconfirmed, match=r"torque may still be on, cut the power: .*elbow_flex"):
            ask_stop("blue", "fire", timeout_s=30)
        assert "cut the power" in caplog.text
        virtual.clear()
        assert ask_stop("blue", "fire")


@pytest.mark.parametrize("request_", [b"", b"\xc1", b"stop!", msgpack.packb(7), msgpack.packb({"reason": ["x"] * 9})])
def test_whatever_is_said_on_the_stop_socket_stops_the_arm(arm, virtual, request_):
    arm.torque(True)
    with Sentry(arm, "blue"):
        socket = zmq.Context.instance().socket(zmq.REQ)
        socket.connect(stop_endpoint("blue"))
        socket.send(request_)
        assert socket.poll(5000)
        assert msgpack.unpackb(socket.recv())["confirmed"] is True
        socket.close()
    assert torque(virtual) == {False}


def test_the_stop_folder_must_be_the_users_own(monkeypatch, tmp_path):
    (tmp_path / "run/hotpolicy").mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="this user's alone"):
        stop_endpoint("blue")


def test_the_sentry_is_the_watchdog_of_a_loop_that_is_stuck(arm, virtual):
    arm.torque(True)
    arm.send(AWAY)
    with Sentry(arm, "blue"):
        eventually(lambda: arm.holding)
    idle = LimitedArm(arm._arm, arm.limits)
    idle.torque(True)
    idle.send(AWAY)
    with Sentry(idle, "blue", watch=False):
        time.sleep(arm.limits.watchdog_s + 0.3)
    assert not idle.holding  # in lock-step a slow answer is no reason


# Parking --------------------------------------------------------------------------------------------------------------


def moved(arm, to=AWAY, ticks=8):
    arm.torque(True)
    for _ in range(ticks):
        arm.send(to)
        arm.read()


def test_an_arm_parks_where_it_was_found(arm, virtual):
    moved(arm)
    assert park(arm, Rate(200))
    assert np.abs(arm.read().positions - [0, 0, 0, 0, 0, 50]).max() < 1.5
    assert torque(virtual) == {True}


def test_parking_is_cut_short(arm):
    moved(arm)
    slow = LimitedArm(arm._arm, Limits.of(arm.spec, 0.01))
    slow.torque(True)
    slow.send(np.array([-40, 0, 0, 0, 0, 50], np.float32))
    slow.rest_pose = np.array([-70.0, 0, 0, 0, 0, 50])
    began = time.monotonic()
    assert not park(slow, Rate(200), longest_s=0.3)
    assert time.monotonic() - began < 2


def test_nothing_is_parked_that_should_not_move(arm, virtual):
    assert not park(arm, Rate(200))  # never switched on
    arm.torque(True)
    assert not park(arm, Rate(200))  # never moved
    moved(arm)
    arm.torque(False)
    assert not park(arm, Rate(200))
    moved(arm)
    arm.freeze("twice")
    before = [servo.goal_ticks for servo in virtual.servos]
    assert not park(arm, Rate(200))
    assert [servo.goal_ticks for servo in virtual.servos] == before


def test_parking_on_a_dead_bus_is_skipped(arm, port, caplog):
    moved(arm)
    port.unplug()
    began = time.monotonic()
    assert not park(arm, Rate(200))
    assert time.monotonic() - began < 2
    assert "not parked" in caplog.text


# Programs that end ----------------------------------------------------------------------------------------------------

PROGRAM = """
import signal, sys, time
import numpy as np
from hotpolicy.launch.rig import Rig
from hotpolicy.launch.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # some shells start programs deaf to it
with Rig.open(sys.argv[1]) as rig:
    rig.arm.torque(True)
    ticks = 0
    while True:
        rig.arm.send(np.array([70, 0, 0, 0, 0, 50], np.float32))
        ticks += 1
        if ticks == 60:
            print("away", flush=True)
        rig.pacer.wait()
"""


@pytest.fixture
def program(profile):
    """Moves the shoulder away from where it was found, as long as it is let."""
    command = [sys.executable, "-c", PROGRAM, str(profile)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "away\n", process.stderr.read()
        yield process
        process.kill()


def shoulder(virtual):
    return (virtual.servos[0].present_ticks - 2000) * 360 / 4095


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_program_parks_and_holds(program, virtual, number):
    assert shoulder(virtual) > 30
    program.send_signal(number)
    assert program.wait(20) != 0
    assert abs(shoulder(virtual)) < 2
    assert torque(virtual) == {True}


def test_ctrl_c_twice_freezes_the_arm_where_it_is(program, virtual, profile):
    program.send_signal(signal.SIGINT)
    eventually(lambda: (virtual.servos[0].goal_ticks or 0) < 2000 + 25 * 4095 / 360)  # on its way back
    program.send_signal(signal.SIGINT)
    assert program.wait(20) != 0
    at = shoulder(virtual)
    assert 2 < at < 30
    assert torque(virtual) == {True}  # it does not drop
    assert FileLatch(load_profile(profile).identity).reason == "Ctrl-C twice"


def test_a_stop_from_another_terminal(program, virtual, profile, capsys, monkeypatch):
    code, out, _ = call(capsys, monkeypatch, "stop", "--robot", profile, "--reason", "hand")
    assert (code, "read back as off" in out) == (0, True)
    assert torque(virtual) == {False}
    assert program.wait(20) == 1
    assert "emergency stop (hand)" in program.stderr.read()
    with Rig.open(profile) as rig, pytest.raises(Stopped, match="hand"):
        rig.arm.torque(True)  # nor does a new program move it
    assert "cleared: hand" in call(capsys, monkeypatch, "stop", "--robot", profile, "--clear")[1]
    with Rig.open(profile) as rig:
        rig.arm.torque(True)
    assert "was not stopped" in call(capsys, monkeypatch, "stop", "--robot", profile, "--clear")[1]


def test_an_arm_that_no_program_drives_is_stopped_over_its_own_bus(virtual, profile, port, capsys, monkeypatch):
    bare = connect(port.path, CALIBRATION, timing=BRISK)
    bare.torque(True)
    bare.bus.close()  # as a killed program leaves it
    assert torque(virtual) == {True}
    assert call(capsys, monkeypatch, "stop", "--robot", profile)[0] == 0
    assert torque(virtual) == {False}


def test_a_stop_that_nobody_can_confirm_has_its_own_exit_code(profile, port, virtual, capsys, monkeypatch):
    virtual.inject("silent", id=2)
    code, _, err = call(capsys, monkeypatch, "stop", "--robot", profile)
    assert (code, "cut the power" in err) == (3, True)
    port.close()
    assert call(capsys, monkeypatch, "stop", "--robot", profile)[0] == 3


def test_a_second_thread_can_stop_a_running_loop(arm, virtual):
    arm.torque(True)
    failed = []

    def drive():
        try:
            for index in range(10_000):
                arm.send(AWAY if index % 2 else -AWAY + [0, 0, 0, 0, 0, 100])
                arm.read()  # waits until the servos have heard it
        except Stopped as error:
            failed.append(error)

    thread = threading.Thread(target=drive)
    thread.start()
    time.sleep(0.2)
    arm.stop("now")
    thread.join(10)
    assert failed
    assert torque(virtual) == {False}


def test_profiles_say_how_an_arm_is_left(profile):
    data = yaml.safe_load(profile.read_text())
    pose = {row.name: 5 for row in SO101_FOLLOWER.joints}
    profile.write_text(
        yaml.safe_dump({**data, "fallback": "safe_pose", "fallback_s": 3, "safe_pose": pose}, sort_keys=False)
    )
    loaded = load_profile(profile)
    assert (loaded.fallback, loaded.fallback_s, loaded.safe_pose) == ("safe_pose", 3.0, (5.0,) * 6)
    for change, text in [
        ({"fallback": "jump"}, "fallback: expected one of hold, safe_pose, release"),
        ({"fallback": "safe_pose"}, "safe_pose: missing"),
        ({"safe_pose": {**pose, "gripper": -5}}, r"safe_pose\.gripper: expected a number from 0 percent"),
        ({"safe_pose": {"gripper": 5}}, r"safe_pose\.shoulder_pan: missing"),
        ({"tool_speed": 0}, "tool_speed: expected a number above 0 mm/s"),
        ({"fallback_s": -1}, "fallback_s: expected a number above 0"),
    ]:
        profile.write_text(yaml.safe_dump({**data, **change}, sort_keys=False))
        with pytest.raises(ConfigError, match=text):
            load_profile(profile)


def test_the_default_tool_speed_is_that_for_working_beside_people(profile):
    data = yaml.safe_load(profile.read_text())
    del data["tool_speed"]
    profile.write_text(yaml.safe_dump(data, sort_keys=False))
    assert load_profile(profile).tool_speed == 250.0
    with Rig.open(profile) as rig:
        assert rig.arm.limits.tool_step == pytest.approx(250 / 50)
        assert rig.arm.limits.joints[0].lever == 1000.0  # nothing is known of this arm
        rig.arm.torque(True)
        first = rig.arm.read().positions
        sent = rig.arm.send(AWAY)
        assert np.abs(np.radians(sent - first)[:5]).sum() * 1000 <= 5.0 + 1e-3


def test_a_key_in_the_terminal_stops_the_arm(arm, virtual):
    inside, outside = pty.openpty()
    arm.torque(True)
    with StopKey(arm.stop, Terminal(outside)):
        os.write(inside, b"qwerty")
        time.sleep(0.2)
        assert torque(virtual) == {True}
        os.write(inside, b"x")
        eventually(lambda: torque(virtual) == {False})
    assert arm.latch.reason == "key x"
    os.close(inside)
    os.close(outside)


def test_the_keyboard_operator_has_that_key_too(arm, virtual):
    inside, outside = pty.openpty()
    arm.torque(True)
    with KeyboardOperator(arm.spec, fd=outside, on_stop=arm.stop) as person:
        person.begin("touch")
        os.write(inside, b"qx")
        eventually(lambda: person.act(Observation({}, np.zeros(6, np.float32), "touch")) is None or arm.latch.reason)
        with pytest.raises(Stopped, match="key x"):
            arm.send(AWAY)
    assert torque(virtual) == {False}
    os.close(inside)
    os.close(outside)


# Unplugged ------------------------------------------------------------------------------------------------------------


def drive_until_lost(arm):
    until = time.monotonic() + 10  # what is written just after the plug was pulled may still find room
    while time.monotonic() < until:
        arm.send(AWAY)
        arm.read()


def test_an_arm_that_is_plugged_in_again_is_verified_and_goes_on(profile, port, virtual, monkeypatch):
    monkeypatch.setattr(rig_module, "LOOK_S", 0.05)
    with Rig.open(profile) as rig:
        rig.arm.torque(True)
        rig.arm.send(AWAY)
        port.unplug()
        with pytest.raises(BusLost) as lost:
            drive_until_lost(rig.arm)
        threading.Timer(0.3, port.replug).start()
        rig.recover(lost.value)
        assert torque(virtual) == {True}
        at = rig.arm.read().positions
        assert np.abs(rig.arm.send(AWAY) - at).max() <= 1.5  # it starts from where it is now


def test_another_arm_in_its_place_is_refused(profile, port, virtual, monkeypatch):
    monkeypatch.setattr(rig_module, "LOOK_S", 0.05)
    with Rig.open(profile) as rig:
        rig.arm.torque(True)
        port.unplug()
        with pytest.raises(BusLost) as lost:
            drive_until_lost(rig.arm)
        virtual.servos[2].poke("position_offset", 77)
        port.replug()
        with pytest.raises(CalibrationError, match="elbow_flex: homing_offset is 0 in the file and 77 in the servo"):
            rig.recover(lost.value)


def test_an_arm_that_stays_away_is_given_up(profile, port, monkeypatch):
    monkeypatch.setattr(rig_module, "LOOK_S", 0.05)
    monkeypatch.setattr(rig_module, "COME_BACK_S", 0.2)
    with Rig.open(profile) as rig:
        rig.arm.torque(True)
        port.unplug()
        with pytest.raises(BusLost) as lost:
            drive_until_lost(rig.arm)
        with pytest.raises(BusLost) as given_up:
            rig.recover(lost.value)
        assert given_up.value is lost.value
