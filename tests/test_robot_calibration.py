"""Calibration files: found where LeRobot keeps them, read strictly, and the same numbers as LeRobot to the tick."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpolicy.robots.calibration import (
    SO_FOLLOWER_NAMES,
    JointCalibration,
    differences,
    find_calibration,
    load_calibration,
    read_calibration,
    write_calibration,
)
from hotpolicy.runtime.errors import CalibrationError

PAN = {"id": 1, "drive_mode": 0, "homing_offset": 158, "range_min": 708, "range_max": 3431}
FILE = {"shoulder_pan": PAN, "gripper": {**PAN, "id": 6, "homing_offset": -710}}


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    for name in ("HF_LEROBOT_CALIBRATION", "HF_LEROBOT_HOME", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def put(path: Path, data: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


# Where ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SO_FOLLOWER_NAMES)
def test_all_three_directory_names_are_searched(home, name):
    file = put(home / ".cache/huggingface/lerobot/calibration/robots" / name / "blue.json", FILE)
    assert find_calibration("blue") == file
    assert load_calibration("blue")["gripper"].homing_offset == -710


@pytest.mark.parametrize(
    ("variable", "below"),
    [
        ("HF_LEROBOT_CALIBRATION", ""),
        ("HF_LEROBOT_HOME", "calibration"),
        ("HF_HOME", "lerobot/calibration"),
        ("XDG_CACHE_HOME", "huggingface/lerobot/calibration"),
    ],
)
def test_lerobots_environment_variables_count(home, monkeypatch, variable, below):
    monkeypatch.setenv(variable, str(home / "other"))
    file = put(home / "other" / below / "teleoperators/so_leader/red.json", FILE)
    assert find_calibration("red", ("so_leader",), "teleoperators") == file


def test_a_missing_calibration_says_where_and_how(home):
    with pytest.raises(CalibrationError) as caught:
        load_calibration("blue")
    text = str(caught.value)
    for name in SO_FOLLOWER_NAMES:
        assert f"{home}/.cache/huggingface/lerobot/calibration/robots/{name}/blue.json" in text
    assert "hotpolicy calibrate --id blue" in text
    assert "lerobot-calibrate --robot.type=so100_follower --robot.id=blue --robot.port=PORT" in text
    assert "\n" not in text
    with pytest.raises(CalibrationError, match="not found"):
        load_calibration(home / "nowhere.json")


# What -----------------------------------------------------------------------------------------------------------------


def test_write_and_read(tmp_path):
    file = put(tmp_path / "a.json", FILE)
    calibration = read_calibration(file)
    write_calibration(tmp_path / "new/b.json", calibration)
    assert (tmp_path / "new/b.json").read_text() == json.dumps(FILE, indent=4)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["b.json"]


OLD = {"homing_offset": [1], "drive_mode": [0], "start_pos": [1], "end_pos": [2], "calib_mode": ["DEGREE"]}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (OLD, "old calibration of lists"),
        ({"homing_offset": [1], "drive_mode": [0]}, "old calibration of lists"),
        ([], "expected an object of joints, got list"),
        ({}, "expected an object of joints"),
        ({"a": 1}, "joint a: expected the fields id, drive_mode, homing_offset, range_min, range_max, got int"),
        ({"a": {"id": 1}}, "joint a: expected the fields"),
        ({"a": {**PAN, "colour": 1}}, "joint a: expected the fields"),
        ({"a": {**PAN, "id": "1"}}, "joint a: id: expected a whole number, got '1'"),
        ({"a": {**PAN, "range_min": 1.5}}, "joint a: range_min: expected a whole number, got 1.5"),
        ({"a": {**PAN, "id": True}}, "joint a: id: expected a whole number"),
        ({"a": {**PAN, "drive_mode": 2}}, "joint a: drive_mode: expected 0 or 1, got 2"),
        ({"a": {**PAN, "range_min": 3431}}, "joint a: expected range_min below range_max, got 3431 and 3431"),
        ({"a": PAN, "b": PAN}, "expected a different id for each joint"),
    ],
)
def test_what_is_not_a_calibration_is_refused_by_name(tmp_path, data, text):
    file = put(tmp_path / "a.json", data)
    with pytest.raises(CalibrationError) as caught:
        read_calibration(file)
    assert str(caught.value).startswith(("calibration file", str(file)))
    assert text in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"not json"])
def test_damaged_files(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CalibrationError, match="expected JSON"):
        read_calibration(tmp_path / "a.json")
    with pytest.raises(CalibrationError, match="directory"):
        read_calibration(tmp_path)


def test_differences_name_joint_field_and_both_values():
    ours = {"pan": JointCalibration(1, 1, 158, 708, 3431)}
    theirs = {"pan": JointCalibration(1, 0, 160, 708, 3430)}
    assert differences(ours, ours) == differences(ours, {"pan": JointCalibration(1, 0, 158, 708, 3431)}) == []
    assert differences(ours, theirs) == [
        "joint pan: homing_offset is 158 in the file and 160 in the servo",
        "joint pan: range_max is 3431 in the file and 3430 in the servo",
    ]


# Units ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "drive", "ticks", "value"),
    [
        ("deg", 0, 2047, 0.0),
        ("deg", 1, 2047 + 1024, 1024 * 360 / 4095),  # drive mode is ignored in degrees
        ("deg", 0, 4095, 2048 * 360 / 4095),  # not clamped
        ("percent", 0, 1047, 0.0),
        ("percent", 0, 3047, 100.0),
        ("percent", 0, 500, 0.0),
        ("percent", 0, 1547, 25.0),
        ("percent", 1, 1547, 75.0),
        ("m100_100", 0, 1547, -50.0),
        ("m100_100", 1, 1547, 50.0),
        ("m100_100", 0, 4000, 100.0),
    ],
)
def test_ticks_to_values(unit, drive, ticks, value):
    assert JointCalibration(1, drive, 0, 1047, 3047).to_value(ticks, unit) == pytest.approx(value)


@pytest.mark.parametrize(
    ("unit", "drive", "value", "ticks"),
    [
        ("deg", 0, 10.0, 2160),  # 2160.75, cut
        ("deg", 0, -10.0, 1933),
        ("deg", 0, 180.0, 4094),
        ("percent", 0, 25.04, 1547),
        ("percent", 1, 25.0, 2547),
        ("percent", 0, 101.0, 3047),
        ("percent", 0, -1.0, 1047),
        ("m100_100", 0, -50.0, 1547),
        ("m100_100", 1, -50.0, 2547),
        ("m100_100", 0, 1000.0, 3047),
    ],
)
def test_values_to_ticks_are_cut_not_rounded(unit, drive, value, ticks):
    assert JointCalibration(1, drive, 0, 1047, 3047).to_ticks(value, unit) == ticks


def test_ten_degrees_land_where_lerobots_do():
    joint = JointCalibration(1, 0, 0, 1047, 3047)
    assert joint.to_value(joint.to_ticks(10.0, "deg"), "deg") == pytest.approx(9.934, abs=1e-3)


def test_unknown_units():
    with pytest.raises(CalibrationError, match="expected one of deg, percent, m100_100, got 'rad'"):
        JointCalibration(1, 0, 0, 0, 1).to_value(0, "rad")
    with pytest.raises(CalibrationError, match="unit"):
        JointCalibration(1, 0, 0, 0, 1).to_ticks(0, "rad")


joints = st.builds(
    lambda drive, low, span: JointCalibration(1, drive, 0, low, low + span),
    st.integers(0, 1),
    st.integers(0, 3000),
    st.integers(1, 1095),
)


@given(joints, st.sampled_from(("deg", "percent", "m100_100")), st.data())
def test_there_and_back_is_within_one_tick(joint, unit, data):
    ticks = data.draw(st.integers(joint.range_min, joint.range_max))
    assert abs(joint.to_ticks(joint.to_value(ticks, unit), unit) - ticks) <= 1


@given(joints, st.floats(-1e6, 1e6))
def test_percent_never_leaves_the_range(joint, value):
    for unit in ("percent", "m100_100"):
        assert joint.range_min <= joint.to_ticks(value, unit) <= joint.range_max
