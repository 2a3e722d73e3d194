"""Robot profiles: the shipped ones load, and each kind of mistake ends in one line that names file and field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hotpolicy.launch.profile import Profile
from hotpolicy.launch.profile_file import SHIPPED, find_profile, load_profile
from hotpolicy.runtime.errors import ConfigError

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")


def test_virtual_arm() -> None:
    profile = load_profile("virtual_so101")
    assert tuple(joint.name for joint in profile.spec.joints) == tuple(f"{name}.pos" for name in JOINTS)
    assert [joint.unit for joint in profile.spec.joints] == ["deg"] * 5 + ["percent"]
    assert profile.spec.rate_hz == 10.0
    assert profile.spec.cameras[0].name == "front"
    assert profile.world is not None


def test_limits_of_the_virtual_arm_lie_within_its_calibration() -> None:
    profile = load_profile("virtual_so101")
    calibration = json.loads(profile.arms[0].calibration.read_text())
    assert [entry["id"] for entry in calibration.values()] == [1, 2, 3, 4, 5, 6]
    for joint in profile.joints:
        span = calibration[joint.name]["range_max"] - calibration[joint.name]["range_min"]
        half = span / 2 * 360 / 4095 if joint.unit == "deg" else 50.0
        middle = 0.0 if joint.unit == "deg" else 50.0
        assert middle - half <= joint.low < joint.high <= middle + half


def test_metal_arm_without_calibration_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HF_LEROBOT_CALIBRATION", "XDG_CACHE_HOME", "HF_HOME", "HF_LEROBOT_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"so101\.yaml: arm\.calibration: calibration of 'my_so101': not found"):
        load_profile("so101")


def test_metal_arm_with_calibration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HF_LEROBOT_CALIBRATION", "XDG_CACHE_HOME", "HF_HOME", "HF_LEROBOT_HOME"):
        monkeypatch.delenv(name, raising=False)
    calibration = tmp_path / ".cache/huggingface/lerobot/calibration/robots/so_follower/my_so101.json"
    calibration.parent.mkdir(parents=True)
    calibration.write_text("{}")
    profile = load_profile("so101")
    assert (profile.arms[0].calibration, profile.world) == (calibration, None)
    assert profile.joints[0].max_lead == 30.0


def test_virtual_arm_moves_as_in_its_demonstrations() -> None:
    from hotpolicy.robots.sim.kinematics import MAX_STEP

    assert [joint.max_step for joint in load_profile("virtual_so101").joints] == pytest.approx(MAX_STEP, rel=1e-4)


def test_own_profile_wins_over_shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    own = tmp_path / "hotpolicy/virtual_so101.yaml"
    own.parent.mkdir()
    own.write_text("name: mine\n")
    assert find_profile("virtual_so101") == own


def test_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"robot: expected one of .*so101.*virtual_so101.* got 'toaster'"):
        load_profile("toaster")


def changed(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    data = yaml.safe_load((SHIPPED / "virtual_so101.yaml").read_text())
    data["arm"]["calibration"] = str(SHIPPED / "virtual_so101.json")
    change(data)
    file = tmp_path / "arm.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return file


def test_unchanged_copy_loads(tmp_path: Path) -> None:
    assert isinstance(load_profile(changed(tmp_path, lambda data: None)), Profile)


def test_chunking_may_be_said_and_is_rtc_otherwise(tmp_path: Path) -> None:
    assert load_profile(changed(tmp_path, lambda data: None)).chunking == "rtc"
    assert load_profile(changed(tmp_path, lambda data: data.update(chunking="sync"))).chunking == "sync"


MISTAKES: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda d: d.pop("rate_hz"), r"rate_hz: missing, expected a number above 0 and at most 1000 Hz"),
    (lambda d: d.update(rate_hz="fast"), r"rate_hz: expected a number above 0 and at most 1000 Hz, got 'fast'"),
    (lambda d: d.update(rate_hz=0), r"rate_hz: expected a number above 0"),
    (lambda d: d.update(rate_hz=float("nan")), r"rate_hz: expected a number"),
    (lambda d: d.update(rate_hz=True), r"rate_hz: expected a number"),
    (lambda d: d.update(speed=3), r"unknown speed"),
    (lambda d: d.update(chunking="none"), r"chunking: expected one of sync, async, rtc, got 'none'"),
    (lambda d: d["arm"].update(id=3), r"arm: unknown id"),
    (lambda d: d["arm"].update(port=""), r"arm\.port: expected text"),
    (lambda d: d["arm"].update(baudrate=9600), r"arm\.baudrate: expected one of 1000000"),
    (lambda d: d["arm"].update(baudrate=1e6), r"arm\.baudrate: expected a whole number"),
    (lambda d: d["arm"].update(calibration="nowhere.json"), r"arm\.calibration: expected a file"),
    (lambda d: d.update(arm=[1]), r"arm: expected a mapping of keys to values, got list"),
    (lambda d: d.update(joints={}), r"joints: expected at least one joint"),
    (lambda d: d["joints"]["gripper"].update(unit="rad"), r"joints\.gripper\.unit: expected one of deg, percent"),
    (lambda d: d["joints"]["gripper"].update(high=-1), r"joints\.gripper\.high: expected a number above 0"),
    (lambda d: d["joints"]["gripper"].update(high=101), r"joints\.gripper\.high: expected .* at most 100 percent"),
    (
        lambda d: d["joints"]["wrist_roll"].update(max_step=0),
        r"joints\.wrist_roll\.max_step: expected a number above 0",
    ),
    (lambda d: d["joints"]["wrist_roll"].update(max_lead=-1), r"wrist_roll\.max_lead: expected a number above 0"),
    (lambda d: d["joints"]["wrist_roll"].pop("low"), r"joints\.wrist_roll\.low: missing"),
    (lambda d: d["cameras"]["front"].update(height=4), r"cameras\.front\.height: expected a whole number above 7"),
    (lambda d: d["cameras"]["front"].update(fps=4), r"cameras\.front: unknown fps"),
    (lambda d: d.pop("world"), r"world: missing, expected the simulator's socket"),
    (lambda d: d["server"].update(endpoint="127.0.0.1:5555"), r"server\.endpoint: expected tcp://HOST:PORT or ipc"),
    (lambda d: d["server"].update(standby=["10.0.0.2"]), r"server\.standby: expected tcp://HOST:PORT or ipc"),
    (lambda d: d["server"].update(token="x"), r"server: unknown token"),
]


@pytest.mark.parametrize(("change", "text"), MISTAKES, ids=[text[:40] for _, text in MISTAKES])
def test_mistake_is_one_clear_line(tmp_path: Path, change: Callable[[dict[str, Any]], object], text: str) -> None:
    file = changed(tmp_path, change)
    with pytest.raises(ConfigError, match=text) as caught:
        load_profile(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "expected a mapping of keys to values, got nothing"),
        (b"just words", "expected a mapping of keys to values, got str"),
        (b"a: [1", "line 1: "),
        (b"name: a\nname: b\n", "line 2: key 'name' given twice"),
        (b"1: 2\n", "expected keys to be text, got 1"),
        (b"!!python/object/apply:os.system ['true']", "line 1: could not determine a constructor"),
        (b"\xff\xfe\xfa", "expected UTF-8 text"),
    ],
)
def test_file_that_is_no_profile(tmp_path: Path, content: bytes, text: str) -> None:
    file = tmp_path / "arm.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=text) as caught:
        load_profile(file)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_profile(tmp_path / "none.yaml")


def test_standby_servers(tmp_path: Path) -> None:
    spare = ["tcp://10.0.0.2:5555", "ipc:///run/spare"]
    alone = load_profile("virtual_so101")
    assert alone.endpoints == (alone.endpoint,)
    profile = load_profile(changed(tmp_path, lambda data: data["server"].update(standby=spare)))
    assert profile.endpoints == (alone.endpoint, *spare)
