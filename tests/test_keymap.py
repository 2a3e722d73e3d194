"""Other runtimes' names on our robots: the maps that come along fit their presets, and a wrong one names its key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from serving import SPEC

from hotpolicy.runtime.errors import BadRequest, ConfigError
from hotpolicy.runtime.fronts import keymap, keymap_file
from hotpolicy.runtime.fronts.keymap import KeyMap
from hotpolicy.runtime.messages import CameraSpec, Joint, RobotSpec

PRESETS = Path(__file__).parent.parent / "launch/presets"
LIBERO = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
JOINTS = [joint.name for joint in SPEC.joints]


def preset(name: str) -> RobotSpec:
    data = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())
    joints = tuple(Joint(key, value["unit"], value["low"], value["high"]) for key, value in data["joints"].items())
    cameras = tuple(CameraSpec(key, value["height"], value["width"]) for key, value in data["cameras"].items())
    return RobotSpec(joints, cameras, data["rate_hz"])


@pytest.mark.parametrize(
    ("name", "robot", "actions"),
    [
        ("openpi_aloha", "aloha", {"actions": 14}),
        ("openpi_droid", "droid", {"actions": 8}),
        ("openpi_libero", "libero", {"actions": 7}),
        (
            "gr00t_libero",
            "libero",
            {f"action.{part}": 1 for part in ("x", "y", "z", "roll", "pitch", "yaw", "gripper")},
        ),
        ("gr00t_so100", "so101", {"action.single_arm": 5, "action.gripper": 1}),
    ],
)
def test_each_map_fits_the_robot_it_is_for(name: str, robot: str, actions: dict[str, int]) -> None:
    spec = preset(robot)
    fit = keymap_file.load(name).fit(spec)
    values: dict[str, Any] = {key: np.zeros((480, 640, 3), np.uint8) for key in fit.keymap.images}
    state = np.arange(len(spec.joints), dtype=np.float64)
    start = 0
    for key, width in fit.widths.items():
        values[key] = state[start : start + width]
        start += width
    values[fit.keymap.task[0]] = "lift the cube"
    seen = fit.observation(values)
    assert set(seen.images) == {camera.name for camera in spec.cameras}
    assert seen.state.dtype == np.float32
    assert np.array_equal(seen.state, state)
    assert seen.task == "lift the cube"
    parts = fit.split(np.tile(state.astype(np.float32), (5, 1)))
    assert {key: part.shape for key, part in parts.items()} == {key: (5, width) for key, width in actions.items()}
    assert np.array_equal(np.concatenate(list(parts.values()), axis=1)[0], state[: sum(actions.values())])


def test_every_map_that_comes_along_is_tested() -> None:
    assert keymap_file.names() == ["gr00t_libero", "gr00t_so100", "openpi_aloha", "openpi_droid", "openpi_libero"]


def test_parts_may_come_in_another_order_than_the_joints() -> None:
    state = {"state.b": JOINTS[3:], "state.a": JOINTS[:3]}
    mixed = KeyMap("mixed", "gr00t", {"video.front": "front"}, state, {"action.last": JOINTS[5:]}, ("task",), "lift")
    fit = mixed.fit(SPEC)
    seen = fit.observation({"video.front": np.zeros((2, 2, 3), np.uint8), "state.a": [0, 1, 2], "state.b": [3, 4, 5]})
    assert seen.state.tolist() == [0, 1, 2, 3, 4, 5]
    assert seen.task == "lift"
    assert fit.split(seen.state[None])["action.last"].tolist() == [[5]]


def test_the_maps_derived_from_a_robot() -> None:
    for made, first in ((keymap.gr00t_default, "video.front"), (keymap.openpi_default, "observation/front")):
        fit = made(SPEC).fit(SPEC)
        assert list(fit.keymap.images) == [first]
        assert list(fit.widths.values()) == [6]


def derived(**fields: object) -> dict[str, object]:
    return {
        "front": "openpi",
        "images": {"observation/front": "front"},
        "state": {"observation/state": JOINTS},
        "actions": {"actions": JOINTS},
        "task": ["prompt"],
    } | fields


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "file: expected a map"),
        (derived(colour=1), "colour: expected one of note, front"),
        (derived(front="ros"), "front: expected one of gr00t, openpi"),
        (derived(actions={"a": JOINTS}), "actions: expected one key named actions"),
        (derived(images=["front"]), "images: expected a map"),
        (derived(images={"observation/front": 1}), "images.observation/front: expected the name of a camera"),
        (derived(state={}), "state: expected at least one key"),
        (derived(state={"observation/state": "joints"}), "state.observation/state: expected a list of joints"),
        (derived(actions={"actions": [1]}), "actions.actions: expected a list of joints"),
        (derived(task=[]), "task: expected a list of keys"),
        (derived(default_task=1), "default_task: expected a text"),
        (derived(note=1), "note: expected a text"),
        (derived(images={"observation/front": "side"}), "images.observation/front: expected a camera among front, got"),
        (derived(images={}), "images: expected a key for the camera 'front'"),
        (derived(state={"s": [*JOINTS, "tail"]}), "state.s: expected joints among joint_0.pos, .* got 'tail'"),
        (derived(state={"s": [*JOINTS, JOINTS[0]]}), "state.s: expected each joint once, got 'joint_0.pos' again"),
        (derived(state={"s": JOINTS[1:]}), "state: expected a key for the joint 'joint_0.pos'"),
        (derived(actions={"actions": ["tail"]}), "actions.actions: expected joints among"),
    ],
)
def test_a_wrong_map_names_its_key(data: object, says: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=f"^keymap mine: {says}"):
        keymap_file.load(str(file)).fit(SPEC)


def test_a_map_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a .json file or one of gr00t_libero, .* got 'libero'"):
        keymap_file.load("libero")
    with pytest.raises(ConfigError, match="keymap: cannot read"):
        keymap_file.load(str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ConfigError, match="keymap bad: expected JSON"):
        keymap_file.load(str(tmp_path / "bad.json"))


def test_pictures_in_every_layout() -> None:
    rows = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    assert np.array_equal(keymap.picture("k", rows), rows)
    turned = keymap.picture("k", np.ascontiguousarray(rows.transpose(2, 0, 1)))
    assert np.array_equal(turned, rows)
    assert turned.flags.c_contiguous
    assert np.array_equal(keymap.picture("k", rows.astype(np.float32) / 255), rows)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "text",
        np.zeros((4, 5), np.uint8),
        np.zeros((1, 4, 5, 3), np.uint8),
        np.zeros((4, 5, 3), np.int64),
        np.full((4, 5, 3), 1.5),
        np.full((4, 5, 3), -0.5),
        np.full((4, 5, 3), np.nan),
        np.zeros((0, 5, 3)),
    ],
)
def test_what_is_no_picture_names_the_key(value: object) -> None:
    with pytest.raises(BadRequest, match=r"^observation/image: expected a picture"):
        keymap.picture("observation/image", value)


@pytest.mark.parametrize(
    "value", [None, "text", {"a": 1}, [1], [1, 2, 3], [[1, 2], [3]], np.array([1, np.nan]), [1e300, 0], [10**400, 0]]
)
def test_what_is_no_state_names_the_key(value: object) -> None:
    with pytest.raises(BadRequest, match=r"^state: expected (2|finite) numbers"):
        keymap.numbers("state", value, 2)


def test_one_number_needs_no_list() -> None:
    assert keymap.numbers("gripper", 0.5, 1).tolist() == [0.5]
    assert keymap.numbers("gripper", np.array([[0.5]]), 1).tolist() == [0.5]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"observation/front": None}, "observation/front: expected a picture"),
        ({"prompt": 5}, "prompt: expected an instruction"),
        ({"prompt": "x" * 2001}, "prompt: expected an instruction"),
    ],
)
def test_an_observation_names_the_clients_key(change: dict[str, Any], says: str) -> None:
    fit = keymap.openpi_default(SPEC).fit(SPEC)
    values: dict[str, Any] = {
        "observation/front": np.zeros((4, 5, 3), np.uint8),
        "observation/state": np.zeros(6),
        "prompt": "lift",
        "more": 1,
    }
    assert fit.observation(values).task == "lift"
    with pytest.raises(BadRequest, match=f"^{says}"):
        fit.observation(values | change)
    for key in ("observation/front", "observation/state", "prompt"):
        with pytest.raises(BadRequest, match=f"^{key}: expected"):
            fit.observation({name: value for name, value in values.items() if name != key})


def test_a_refusal_of_our_camera_names_their_key() -> None:
    fit = keymap_file.load("openpi_libero").fit(preset("libero"))
    told = fit.in_their_words(BadRequest("images.wrist_image: expected (224, 224, 3) uint8 RGB, got (8, 8, 3) uint8"))
    assert type(told) is BadRequest
    assert str(told) == "observation/wrist_image: expected (224, 224, 3) uint8 RGB, got (8, 8, 3) uint8"
    other = BadRequest("state: expected finite numbers")
    assert fit.in_their_words(other) is other
