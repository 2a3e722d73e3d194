"""Profiles of arms other than the SO-101, and of two arms: read, opened and driven against virtual servos."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from hotpolicy.launch.profile_file import SHIPPED, load_profile
from hotpolicy.launch.rig import Rig
from hotpolicy.robots.arms.catalogue import ARMS, arm_table
from hotpolicy.runtime.errors import ConfigError

ROOT = Path(__file__).parent.parent
KOCH = SHIPPED / "virtual_koch.yaml"


def write(folder: Path, change) -> Path:
    data = yaml.safe_load(KOCH.read_text())
    data["arm"] |= {"calibration": str(SHIPPED / "virtual_koch.json"), "port": f"{folder}/arm"}
    change(data)
    file = folder / "robot.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return file


def pair(data):
    one = data["arm"]
    data["arm"] = {side: {**one, "port": f"{one['port']}-{side}"} for side in ("left", "right")}
    data["joints"] = {f"{side}_{name}": row for side in ("left", "right") for name, row in data["joints"].items()}


def test_a_profile_names_its_arm():
    profile = load_profile("virtual_koch")
    table = ARMS[profile.arms[0].kind]
    assert [joint.name for joint in profile.joints] == [row.name for row in table.joints]
    assert (len(profile.arms), profile.world, profile.arms[0].baudrate) == (1, None, 1_000_000)
    assert load_profile("virtual_so101").arms[0].kind == "so101_follower"


def test_a_profile_of_two_arms(tmp_path):
    profile = load_profile(write(tmp_path, pair))
    assert tuple(arm.port for arm in profile.arms) == (f"{tmp_path}/arm-left", f"{tmp_path}/arm-right")
    assert profile.spec.joints[11].name == "right_gripper.pos"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["arm"].update(kind="puma"), r"arm\.kind: expected one of so101_follower.*, got 'puma'"),
        (lambda d: d["arm"].update(baudrate=500_000), r"arm\.baudrate: expected one of 9600, 57600"),
        (lambda d: (pair(d), d["arm"].pop("right")), r"arm\.right: missing"),
        (lambda d: (pair(d), d["arm"].update(port="x")), r"arm: unknown port"),
        (lambda d: (pair(d), d["arm"]["left"].update(colour=1)), r"arm\.left: unknown colour"),
    ],
)
def test_mistakes_name_the_field(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        load_profile(write(tmp_path, change))


def test_an_unknown_arm_lists_the_known_ones():
    assert arm_table("viperx_300").name == "viperx_300"
    with pytest.raises(ConfigError, match="expected one of so101_follower"):
        arm_table("puma")


@pytest.fixture
def served(tmp_path):
    """A profile of two Koch arms, and their servos behind it."""
    file = write(tmp_path, pair)
    command = [sys.executable, "-m", "hotpolicy.launch.cli", "virtual-arm", "--robot", str(file)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == [
            f"ready: {tmp_path}/arm-left\n",
            f"ready: {tmp_path}/arm-right\n",
        ]
        yield file
        process.terminate()
        assert process.wait(20) == 0


def test_two_virtual_arms_from_profile_to_motion(served):
    with Rig.open(served) as rig:
        rig.arm.torque(True)
        goal = rig.arm.read().positions
        for _ in range(5):
            goal = rig.arm.send(goal + np.float32(2.0))
            rig.pacer.wait()
        for _ in range(100):
            state = rig.arm.read()
            if abs(state.positions - goal).max() < 0.2:
                break
            rig.pacer.wait()
        assert abs(state.positions - goal).max() < 0.2
        assert (len(goal), state.stale, state.faults) == (12, (), {})
        assert goal[0] == pytest.approx(10, abs=0.2)


def test_servos_alone_do_not_take_the_place_of_a_real_port(tmp_path):
    file = write(tmp_path, lambda d: d["arm"].update(port="/dev/serial/by-id/koch"))
    command = [sys.executable, "-m", "hotpolicy.launch.cli", "virtual-arm", "--robot", str(file)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode != 0
    assert "is a place for real arms; give --port-link" in run.stderr
