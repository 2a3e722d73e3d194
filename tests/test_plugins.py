"""Devices of other packages: the documented example, run as it stands in the documentation, and what can go wrong."""

from __future__ import annotations

import re
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hotpolicy.launch.profile_file import load_profile
from hotpolicy.launch.rig import Rig
from hotpolicy.launch.teleop import operator
from hotpolicy.robots import lerobot_adapter, plugins
from hotpolicy.robots.lerobot_adapter import LeRobotArm, LeRobotOperator
from hotpolicy.robots.plugins import PluginUse, available, make_arm, make_camera, make_operator
from hotpolicy.robots.robot import Frame
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import BusLost, CalibrationError, CameraLost, ConfigError, LimitViolation
from hotpolicy.runtime.messages import CameraSpec, Joint, Observation, RobotSpec

PAGE = Path(__file__).parent.parent / "docs/plugins.md"
SPEC = RobotSpec((Joint("a.pos", "deg", -90, 90), Joint("b.pos", "deg", -90, 90)), (), 30.0)


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The documented package, installed as pip would leave it, and its profile."""
    toml, code, profile = re.findall(r"```(?:toml|python|yaml)\n(.*?)```", PAGE.read_text(), re.DOTALL)[:3]
    (tmp_path / "my_arm.py").write_text(code)
    info = tmp_path / "my_arm-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-arm\nVersion: 1.0\n")
    (line,) = re.findall(r"^my_arm = \"(.*)\"$", toml, re.MULTILINE)
    (info / "entry_points.txt").write_text(f"[hotpolicy.robots]\nmy_arm = {line}\n")
    (tmp_path / "mine.yaml").write_text(profile)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_arm", None)


def test_the_documented_arm_runs_behind_its_limits(example):
    assert available("robots")["my_arm"] == "my_arm:make"
    assert "my_arm" not in sys.modules  # nothing is imported before it is asked for
    with Rig.open(example / "mine.yaml") as rig:
        assert rig.arm.read().positions.tolist() == [5.0, 5.0]
        rig.arm.torque(True)
        assert rig.arm.send(np.array([90, -90], np.float32)).tolist() == [7.0, 3.0]  # two degrees per tick
    with pytest.raises(ConfigError, match=r"options\.start: expected degrees, got 'up'"):
        make_arm(PluginUse("my_arm", {"start": "up"}), load_profile(example / "mine.yaml").spec)


def test_profiles_name_what_is_wrong(example):
    text = (example / "mine.yaml").read_text()
    for old, new, complaint in [
        ("plugin: my_arm", "plugin: my_leg", "plugin: expected one of the robots lerobot, my_arm, got 'my_leg'"),
        ("plugin: my_arm", "plugin: my_arm\n  port: /dev/ttyACM0", "arm: unknown port"),
        ("{ start: 5.0 }", "5", "arm.options: expected a mapping of names to values, got 5"),
        ("cameras: {}", "cameras: { c: { source: arm, height: 48, width: 64 } }", "this has none"),
    ]:
        (example / "other.yaml").write_text(text.replace(old, new))
        with pytest.raises(ConfigError) as caught:
            Rig.open(example / "other.yaml")
        assert complaint in str(caught.value)


# Faults of plug-ins ---------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch):
    """Put a factory under a name."""

    def install(kind, name, factory):
        module = types.ModuleType("somebodys")
        module.make = factory
        monkeypatch.setitem(sys.modules, "somebodys", module)
        monkeypatch.setattr(plugins, "BUILT_IN", {**plugins.BUILT_IN, kind: {name: "somebodys:make"}})

    return install


def test_a_plugin_that_cannot_be_imported(monkeypatch):
    monkeypatch.setattr(plugins, "BUILT_IN", {"robots": {"gone": "no_such_package:make", "bare": "json:make"}})
    with pytest.raises(ConfigError, match=r"robots plug-in 'gone' .*cannot be imported: No module named"):
        make_arm(PluginUse("gone", {}), SPEC)
    with pytest.raises(ConfigError, match=r"robots plug-in 'bare' .*cannot be imported: module 'json' has no"):
        make_arm(PluginUse("bare", {}), SPEC)


def test_a_factory_that_makes_something_else(installed):
    installed("robots", "odd", lambda spec, options: object())
    with pytest.raises(ConfigError, match="made a object without read, send, hold, torque, close, spec"):
        make_arm(PluginUse("odd", {}), SPEC)
    installed("robots", "odd", lambda spec, options: options["port"])
    with pytest.raises(ConfigError, match=r"options \{\}: KeyError\('port'\)"):
        make_arm(PluginUse("odd", {}), SPEC)


def test_an_arm_with_other_joints_is_refused_and_closed(installed):
    robot = Robot()
    other = RobotSpec((Joint("a.pos", "deg", -90, 90),), (), 30.0)
    installed("robots", "short", lambda spec, options: LeRobotArm(robot, other))
    with pytest.raises(ConfigError, match="expected an arm with the joints"):
        make_arm(PluginUse("short", {}), SPEC)
    assert not robot.is_connected


def test_cameras_and_operators(installed, example):
    class Still:
        def __init__(self, spec, options):
            self.name, self.spec, self.grey = spec.name, spec, options["grey"]

        def read(self):
            return Frame(np.full((self.spec.height, self.spec.width, 3), self.grey, np.uint8), now())

        def close(self):
            pass

    installed("cameras", "still", Still)
    text = (example / "mine.yaml").read_text()
    camera = "cameras: { c: { plugin: still, options: { grey: 7 }, height: 48, width: 64 } }"
    (example / "seeing.yaml").write_text(text.replace("cameras: {}", camera))
    with Rig.open(example / "seeing.yaml") as rig:
        assert rig.cameras[0].read().image[0, 0, 0] == 7
    assert make_camera(PluginUse("still", {"grey": 1}), CameraSpec("c", 8, 8)).name == "c"

    class Hand:
        def __init__(self, spec, options):
            self.options = options

        def act(self, observation):
            return None

        def close(self):
            pass

    installed("teleoperators", "hand", Hand)
    assert make_operator(PluginUse("hand", {}), SPEC).act(None) is None
    (example / "taught.yaml").write_text(text + "teleoperators: { hand: { speed: 3 } }\n")
    with Rig.open(example / "taught.yaml") as rig:
        assert operator(rig, "hand").options == {"speed": 3}
        with pytest.raises(ConfigError, match="teleop: expected scripted, keyboard, gamepad, leader, hand, got 'foot'"):
            operator(rig, "foot")


# LeRobot's objects, as far as the adapter knows them ------------------------------------------------------------------


class Device:
    """The face LeRobot's devices show: a bus and dictionaries."""

    def __init__(self, calibrated=True):
        self.is_connected, self.is_calibrated = False, calibrated
        self.trouble = None

    def connect(self, calibrate):
        assert calibrate is False  # its dialogue would wait for a key
        self.is_connected = True

    def disconnect(self):
        self.is_connected = False

    def _fail(self):
        if self.trouble:
            raise self.trouble

    def __str__(self):
        return "blue"


class Robot(Device):
    def __init__(self, calibrated=True, bus=True):
        super().__init__(calibrated)
        self.at = {"b.pos": 2.0, "a.pos": 1.0, "grip.pos": 0.0}
        self.observation_features = {**dict.fromkeys(self.at, float), "top": (4, 6, 3)}
        self.action_features = dict.fromkeys(self.at, float)
        self.sent = []
        if bus:
            self.bus = types.SimpleNamespace(
                enable_torque=lambda: self.sent.append("on"), disable_torque=lambda: self.sent.append("off")
            )

    def get_observation(self):
        self._fail()
        return {**self.at, "top": np.full((4, 6, 3), 9, np.uint8)}

    def send_action(self, action):
        self._fail()
        self.sent.append(action)
        return action


class Leader(Device):
    def __init__(self):
        super().__init__()
        self.action_features = {"a.pos": float, "b.pos": float}

    def get_action(self):
        self._fail()
        return {"b.pos": 4.0, "a.pos": 3.0}


def test_a_lerobot_robot_is_an_arm():
    robot = Robot()
    arm = LeRobotArm(robot, SPEC)
    assert arm.read().positions.tolist() == [1.0, 2.0]  # by name, not by order
    arm.send(np.array([5, 6], np.float32))
    arm.hold()
    assert robot.sent == [{"a.pos": 5.0, "b.pos": 6.0}, {"a.pos": 1.0, "b.pos": 2.0}]
    frame = arm.camera(CameraSpec("top", 4, 6)).read()
    assert frame.image[0, 0].tolist() == [9, 9, 9]
    arm.close()
    arm.close()
    assert not robot.is_connected


def test_a_released_lerobot_robot_gets_no_goal():
    robot = Robot()
    arm = LeRobotArm(robot, SPEC)
    arm.torque(False)
    with pytest.raises(LimitViolation, match="torque on before a goal"):
        arm.send(np.zeros(2, np.float32))
    arm.hold()
    arm.torque(True)
    assert robot.sent == ["off", {"a.pos": 1.0, "b.pos": 2.0}, "on"]  # it starts from where it is
    arm.send(np.zeros(2, np.float32))
    bare = LeRobotArm(Robot(bus=False), SPEC)
    bare.torque(True)
    with pytest.raises(LimitViolation, match="no way to release this robot"):
        bare.torque(False)


@pytest.mark.parametrize("trouble", [OSError("gone"), ConnectionError("gone"), RuntimeError("gone\nat line 2")])
def test_whatever_lerobot_raises_is_a_lost_bus(trouble):
    robot, leader = Robot(), Leader()
    arm, person = LeRobotArm(robot, SPEC), LeRobotOperator(leader, SPEC)
    robot.trouble = leader.trouble = trouble
    for act in (arm.read, lambda: arm.send(np.zeros(2)), lambda: person.act(OBSERVATION)):
        with pytest.raises(BusLost, match=r"blue: \w+: gone$"):
            act()


OBSERVATION = Observation({}, np.zeros(2, np.float32), "touch")


def test_a_lerobot_leader_is_an_operator():
    person = LeRobotOperator(Leader(), SPEC)
    assert person.act(OBSERVATION).tolist() == [3.0, 4.0]
    person.close()


def test_what_does_not_fit_is_named():
    with pytest.raises(CalibrationError, match="blue: expected a calibrated device"):
        LeRobotArm(Robot(calibrated=False), SPEC)
    wide = replace(SPEC, joints=(*SPEC.joints, Joint("c.pos", "deg", -1, 1)))
    with pytest.raises(ConfigError, match=r"c\.pos is none that this robot measures"):
        LeRobotArm(Robot(), wide)
    with pytest.raises(ConfigError, match=r"c\.pos is none that this teleoperator gives"):
        LeRobotOperator(Leader(), wide)
    robot = Robot()
    robot.at["a.pos"] = float("nan")
    with pytest.raises(BusLost, match="expected finite positions"):
        LeRobotArm(robot, SPEC).read()
    arm = LeRobotArm(Robot(), SPEC)
    for camera in (CameraSpec("top", 8, 8), CameraSpec("side", 4, 6)):
        with pytest.raises(ConfigError, match=f"cameras.{camera.name}: expected"):
            arm.camera(camera)
    with pytest.raises(CameraLost, match="camera top: expected a frame"):
        arm.camera(CameraSpec("top", 4, 6)).read()  # nothing was read yet


def test_without_lerobot_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lerobot", None)
    with pytest.raises(ConfigError, match="needs LeRobot"):
        lerobot_adapter.make_robot(SPEC, {"type": "so101_follower"})
