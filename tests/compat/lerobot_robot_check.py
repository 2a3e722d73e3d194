"""Does LeRobot's own SO-101 driver, behind our adapter, drive our virtual servos? And its leader, as an operator?

LeRobot needs Python 3.12, so this has an environment of its own and is no part of `make test`:

    python3.12 -m venv /tmp/lerobot
    /tmp/lerobot/bin/pip install "lerobot==0.6.1" feetech-servo-sdk==1.0.0 pyserial msgpack filelock
    PYTHONPATH=.types /tmp/lerobot/bin/python tests/compat/lerobot_robot_check.py
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from hotpolicy.robots.arms.so import SO101_FOLLOWER
from hotpolicy.robots.calibration import JointCalibration, write_calibration
from hotpolicy.robots.limits import JointLimit, LimitedArm, Limits
from hotpolicy.robots.plugins import PluginUse, make_arm, make_operator
from hotpolicy.robots.sim.pty import VirtualPort, serve
from hotpolicy.robots.sim.servos import VirtualBus
from hotpolicy.runtime.errors import BusLost, CalibrationError, ConfigError
from hotpolicy.runtime.messages import Joint, Observation, RobotSpec

CALIBRATION = {row.name: JointCalibration(row.id, 0, 10 * row.id, 1000, 3000) for row in SO101_FOLLOWER.joints}
SPEC = RobotSpec(tuple(Joint(f"{row.name}.pos", row.unit, -80, 80) for row in SO101_FOLLOWER.joints), (), 30.0)
LIMITS = Limits(tuple(JointLimit(-80, 80, 5, None) for _ in SPEC.joints), 0.5)


def check_robot(folder: Path) -> None:
    virtual = VirtualBus.from_calibration(CALIBRATION)
    with serve(virtual, VirtualPort(folder / "follower"), step_ticks=100) as port:
        use = PluginUse("lerobot", {"type": "so101_follower", "port": port.path, "id": "blue"})
        arm = LimitedArm(make_arm(use, SPEC), LIMITS)
        start = arm.read().positions
        for _ in range(12):
            sent = arm.send(np.array([10, -10, 10, -10, 10, 60], np.float32))
        for _ in range(50):
            reached = arm.read().positions
        assert np.allclose(sent, [10, -10, 10, -10, 10, 60]), sent
        assert np.allclose(reached, sent, atol=0.3), (start, reached)
        print(f"robot: from {start.round(1)} to {reached.round(1)} through LeRobot's driver")
        port.unplug()
        try:
            arm.read()
        except BusLost as error:
            print(f"unplugged: {error}")
        else:
            raise AssertionError("expected BusLost")


def check_leader(folder: Path) -> None:
    virtual = VirtualBus.from_calibration(CALIBRATION)
    with serve(virtual, VirtualPort(folder / "leader"), step_ticks=100) as port:
        use = PluginUse("lerobot", {"type": "so101_leader", "port": port.path, "id": "red"})
        operator = make_operator(use, SPEC)
        virtual.servos[0].place(2000 + 10 * 4095 / 360)  # ten degrees, by hand
        action = operator.act(Observation({}, np.zeros(6, np.float32), "touch"))
        assert action is not None
        assert abs(action[0] - 10) < 0.2, action
        operator.close()
        print(f"leader: {action.round(1)}")


def check_errors(folder: Path) -> None:
    cases = [
        ({}, ConfigError),
        ({"type": "so102_follower"}, ConfigError),
        ({"type": "so101_follower", "prt": "x"}, ConfigError),
        ({"type": "so101_follower", "port": str(folder / "none"), "id": "blue"}, BusLost),
    ]
    for options, kind in cases:
        try:
            make_arm(PluginUse("lerobot", options), SPEC)
        except kind as error:
            print(f"{kind.__name__}: {error}")
        else:
            raise AssertionError(f"expected {kind.__name__} for {options}")
    virtual = VirtualBus.from_calibration({**CALIBRATION, "gripper": JointCalibration(6, 0, 0, 900, 3000)})
    with serve(virtual, VirtualPort(folder / "other"), step_ticks=100) as port:
        try:
            make_arm(PluginUse("lerobot", {"type": "so101_follower", "port": port.path, "id": "blue"}), SPEC)
        except CalibrationError as error:
            print(f"CalibrationError: {error}")
        else:
            raise AssertionError("expected CalibrationError")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        os.environ["HF_LEROBOT_CALIBRATION"] = str(home / "calibration")  # before LeRobot is imported
        write_calibration(home / "calibration/robots/so_follower/blue.json", CALIBRATION)
        write_calibration(home / "calibration/teleoperators/so_leader/red.json", CALIBRATION)
        check_robot(home)
        check_leader(home)
        check_errors(home)
        print("all well")
