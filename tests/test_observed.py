"""What a robot sends wrongly is refused by name, with what was expected and a guess at what went wrong."""

from __future__ import annotations

import numpy as np
import pytest

from hotpolicy.runtime.errors import BadRequest
from hotpolicy.runtime.messages import CameraSpec, Joint, Observation, RobotSpec
from hotpolicy.runtime.observed import check_observation

SPEC = RobotSpec(
    tuple(Joint(f"joint_{i}", "deg", -90, 90) for i in range(3)),
    (CameraSpec("front", 48, 64), CameraSpec("wrist", 32, 32)),
    rate_hz=10,
)
IMAGE = np.zeros((48, 64, 3), np.uint8)
GOOD = {"front": IMAGE, "wrist": np.zeros((32, 32, 3), np.uint8)}
STATE = np.zeros(3, np.float32)


def test_a_good_one_passes():
    check_observation(Observation(GOOD, STATE, "go"), SPEC)
    with_strides = {**GOOD, "front": np.zeros((48, 64, 6), np.uint8)[..., ::2]}
    check_observation(Observation(with_strides, STATE, "go"), SPEC)


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (IMAGE / np.float32(255), r"float32: numbers from 0 to 0; expected 0 to 255, not scaled$"),
        (IMAGE.astype(np.float64) - 1, r"float64: numbers from -1 to -1; expected 0 to 255"),
        (np.full(IMAGE.shape, np.nan, np.float32), "NaN or infinity among them"),
        (IMAGE.transpose(2, 0, 1), r"got \(3, 48, 64\) uint8: the colours come first; expected height, width, colours"),
        ((IMAGE / np.float32(255)).transpose(2, 0, 1), "the colours come first"),
        (IMAGE.transpose(1, 0, 2), "height and width are exchanged"),
        (IMAGE[None], "a batch; expected one picture"),
        (IMAGE[..., 0], "expected three colours"),
        (IMAGE[..., :1], "expected three colours"),
        (np.zeros((48, 64, 4), np.uint8), "expected three colours"),
        (np.zeros((40, 64, 3), np.uint8), r"got \(40, 64, 3\) uint8$"),
        (np.zeros((0, 64, 3), np.float32), "NaN or infinity|got"),
        (IMAGE.astype(np.int64), "int64$"),
        (IMAGE.astype(bool), "bool$"),
        (np.zeros(0, np.uint8), "got"),
        (np.uint8(3), "got"),
    ],
)
def test_pictures(image, told):
    with pytest.raises(BadRequest, match=r"^images.front: expected \(48, 64, 3\) uint8 RGB, .*" + told):
        check_observation(Observation({**GOOD, "front": np.asarray(image)}, STATE, "go"), SPEC)


def test_cameras():
    with pytest.raises(BadRequest, match=r"^images.wrist: expected this camera, got front$"):
        check_observation(Observation({"front": IMAGE}, STATE, "go"), SPEC)
    with pytest.raises(BadRequest, match=r"^images.front: expected this camera, got none$"):
        check_observation(Observation({}, STATE, "go"), SPEC)
    with pytest.raises(BadRequest, match=r"^images.top: this policy knows no such camera; expected front, wrist$"):
        check_observation(Observation({**GOOD, "top": IMAGE}, STATE, "go"), SPEC)


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (np.zeros(4, np.float32), r"expected \(3,\) float32, got \(4,\) float32"),
        (np.zeros((1, 3), np.float32), r"expected \(3,\) float32, got \(1, 3\)"),
        (np.zeros(3), r"expected \(3,\) float32, got \(3,\) float64"),
        (np.array([0, np.nan, 0], np.float32), "expected finite numbers, got nan at joint 1"),
        (np.array([0, 0, -np.inf], np.float32), "expected finite numbers, got -inf at joint 2"),
    ],
)
def test_states(state, told):
    with pytest.raises(BadRequest, match=f"^state: {told}"):
        check_observation(Observation(GOOD, state, "go"), SPEC)


def test_a_picture_may_come_fitted():
    """openpi's clients make pictures small before they send them."""
    fitted = {name: np.zeros((24, 24, 3), np.uint8) for name in GOOD}
    check_observation(Observation(fitted, STATE, "go"), SPEC, model_size=24)
    with pytest.raises(BadRequest, match=r"expected \(48, 64, 3\) or \(24, 24, 3\) uint8 RGB, got \(25, 24, 3\)"):
        check_observation(Observation({**GOOD, "front": np.zeros((25, 24, 3), np.uint8)}, STATE, "go"), SPEC, 24)
