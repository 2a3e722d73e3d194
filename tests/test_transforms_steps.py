"""Each step of the transforms by itself: what went in comes back, and a bad entry is named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.tokenizer import WordTokenizer
from hotpolicy.runtime.transforms import (
    ImageSlots,
    Normalise,
    Prompt,
    Quantile,
    Relative,
    Transforms,
    Width,
    resize_with_pad,
)

JOINTS, HORIZON = 3, 2
UNITS = st.floats(-400, 400, width=32)
SPREADS = st.floats(0.125, 200, width=32)
EPS = st.sampled_from([0.0, 1e-8, 1e-6])


def row(elements: st.SearchStrategy[float], *shape: int) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float32, shape or (JOINTS,), elements=elements)


@st.composite
def normalisers(draw: st.DrawFn, *shape: int) -> Normalise | Quantile:
    centre, spread, eps = draw(row(UNITS, *shape)), draw(row(SPREADS, *shape)), draw(EPS)
    if draw(st.booleans()):
        return Normalise(centre, spread, eps)
    return Quantile(centre - spread, centre + spread, eps)


@given(normalisers(), row(UNITS, 4, JOINTS))
def test_normalising_comes_back(step, values):
    """To float32's last digits of the largest number on the way."""
    there = step.forward(values)
    assert there.dtype == np.float32
    np.testing.assert_allclose(step.inverse(there), values, rtol=0, atol=2e-3)
    np.testing.assert_allclose(step.scale * (there[0] - there[1]), values[0] - values[1], rtol=0, atol=2e-3)


@given(row(UNITS), row(SPREADS), EPS)
def test_what_the_numbers_mean(middle, spread, eps):
    np.testing.assert_allclose(Normalise(middle, spread, eps).forward(np.stack([middle, middle + spread])),
                               [[0] * JOINTS, [1] * JOINTS], atol=1e-3)  # fmt: skip
    ends = np.stack([middle - spread, middle + spread])
    np.testing.assert_allclose(Quantile(*ends, eps).forward(ends), [[-1] * JOINTS, [1] * JOINTS], atol=1e-3)


@given(row(UNITS, 2, HORIZON, JOINTS), row(UNITS, 2, JOINTS), row(st.booleans()))
def test_relative_actions_come_back(actions, state, mask):
    step = Relative(mask.astype(bool))
    there = step.forward(actions, state)
    np.testing.assert_allclose(step.inverse(there, state), actions, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(there[..., ~step.mask], actions[..., ~step.mask])
    moved = step.forward(np.repeat(state[:, None], HORIZON, 1), state)
    assert not moved[..., step.mask].any()  # staying where one is, is zero


@given(st.integers(1, 9), st.integers(0, 9), st.sampled_from([(), (2,), (2, 3)]))
def test_width_comes_back(joints, more, before):
    step, values = Width(joints, joints + more), np.random.default_rng(0).normal(size=(*before, joints))
    there = step.forward(values)
    assert there.shape == (*before, joints + more)
    assert not there[..., joints:].any()
    np.testing.assert_array_equal(step.inverse(there), values)


@given(normalisers(HORIZON, JOINTS), normalisers(), row(st.booleans()), st.integers(0, 5), st.data())
def test_all_of_it_comes_back(action, state, mask, more, data):
    if type(state) is not type(action) or state.eps != action.eps:
        state = type(action)(np.zeros(JOINTS, np.float32), np.ones(JOINTS, np.float32), action.eps)
    ours = Transforms(("a",), state, action, Relative(mask.astype(bool)), WordTokenizer(64, 4), width=JOINTS + more)
    actions, now = data.draw(row(UNITS, 2, HORIZON, JOINTS)), data.draw(row(UNITS, 2, JOINTS))
    there = ours.encode_actions(actions, now)
    assert there.shape == (2, HORIZON, JOINTS + more)
    np.testing.assert_allclose(ours.decode(there, now), actions, rtol=0, atol=5e-3)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
def test_a_picture_keeps_its_shape_and_middle(height, width, size):
    """White on black: its bars have the width the shape asks for, and are as wide on either side, give or take one."""
    ratio = max(height / size, width / size)
    if int(height / ratio) == 0 or int(width / ratio) == 0:
        return  # thinner than a pixel
    out = resize_with_pad(np.full((2, height, width, 3), 255, np.uint8), size, size)
    assert (out.shape, out.dtype) == ((2, size, size, 3), np.uint8)
    rows, columns = (np.flatnonzero(out[1].any(axis)) for axis in ((1, 2), (0, 2)))
    assert (len(rows), len(columns)) == (int(height / ratio), int(width / ratio))
    assert (out[1][np.ix_(rows, columns)] == 255).all()
    for lit in (rows, columns):
        assert size - 1 - lit[-1] - lit[0] in (0, 1)


def test_a_picture_thinner_than_a_pixel_is_a_line():
    assert resize_with_pad(np.full((1000, 1, 3), 255, np.uint8), 32, 32).any(-1).any(0).sum() == 1


def test_a_picture_of_the_right_size_is_not_touched():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert resize_with_pad(image, 32, 32) is image
    assert ImageSlots(("a",)).fit(image) is image


def test_slots_without_a_camera_are_hidden():
    slots = ImageSlots((None, "b", None, "a"), 8, "pad")
    assert slots.cameras == ("b", "a")
    images, mask = slots.forward([{name: np.full((16, 16, 3), ord(name), np.uint8) for name in "ab"}] * 2)
    assert mask.tolist() == [[False, True, False, True]] * 2
    assert images.max(axis=(2, 3, 4)).tolist() == [[0, ord("b"), 0, ord("a")]] * 2
    assert ImageSlots.from_dict(slots.to_dict()) == slots


def test_a_joint_that_never_moved_is_given_a_floor():
    raised = Normalise.floored(np.zeros(2), np.array([0.0, 5.0]), 0.5)
    assert raised.std.tolist() == [0.5, 5.0]
    widened = Quantile.floored(np.array([3.0, 0.0]), np.array([3.0, 5.0]), 0.5, 1e-6)
    assert (widened.q01.tolist(), widened.q99.tolist(), widened.eps) == ([2.75, 0.0], [3.25, 5.0], 1e-6)


ENTRY = {
    "cameras": ["a"],
    "normalisation": "quantile",
    "state": {"q01": [0.0, -1.0], "q99": [1.0, 1.0]},
    "action": {"q01": [0.0, -1.0], "q99": [1.0, 1.0]},
    "relative": [True, False],
    "tokenizer": {"kind": "words", "vocabulary": 64, "max_tokens": 4},
    "images": {"size": 8, "resize": "pad", "slots": ["a", None]},
    "horizon": 2,
}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"state": {"q01": [0.0, 1.0], "q99": [1.0, 1.0]}}, r"transforms.state: q99 - q01: .*joint 1 .*floor"),
        ({"state": {"q01": [0.0, 2.0], "q99": [1.0, 1.0]}}, r"transforms.state: q99 - q01: .*joint 1"),
        ({"action": {"q01": [float("nan"), -1.0], "q99": [1.0, 1.0]}}, r"transforms.action.q01: .*finite.*joint 0"),
        ({"action": {"q01": [0.0], "q99": [1.0, 1.0]}}, "transforms.action: expected q01 and q99 of one shape"),
        ({"action": {"q01": 0.0, "q99": 1.0}}, "transforms.action: expected q01 and q99 of one shape"),
        ({"action": {"q01": ["x"], "q99": [1.0]}}, "transforms.action: expected numbers"),
        ({"action": {"q01": [[0.0, 0.0]], "q99": [[1.0, 1.0]]}}, "transforms.action: expected .*2.*got .*1"),
        ({"action": [1.0]}, "transforms.action: expected q01 and q99, got list"),
        ({"normalisation": "mean_std"}, "transforms.state: expected mean and std"),
        ({"eps": -1e-6}, "transforms.eps"),
        ({"eps": "small"}, "transforms.eps"),
        ({"width": 1}, "transforms.width: expected at least 2, the joints, got 1"),
        ({"width": 0}, "transforms.width: expected at least 1"),
        ({"width": True}, "transforms.width: expected at least 1"),
        ({"horizon": 0}, "transforms.horizon"),
        ({"relative": [True]}, r"transforms.relative: expected \(2,\), got \(1,\)"),
        ({"relative": [1, 0]}, "transforms.relative: expected a list of bool"),
        ({"cameras": "a"}, "transforms.cameras: expected a list of str"),
        ({"cameras": ["b"]}, "transforms.images.slots"),
        ({"prompt": "shout"}, "transforms.prompt"),
        ({"prompt": ["pi0"]}, "transforms.prompt"),
        ({"sharpen": 1}, "transforms.sharpen: unknown field"),
        ({"images": {"size": 8, "slots": ["a"]}}, "transforms.images: expected size, resize and slots"),
        ({"images": {"size": 0, "resize": "pad", "slots": ["a"]}}, "transforms.images.size"),
        ({"images": {"size": 8, "resize": "crop", "slots": ["a"]}}, "transforms.images.resize"),
        ({"images": {"size": 8, "resize": "pad", "slots": [None]}}, "at least one camera"),
        ({"images": {"size": 8, "resize": "pad", "slots": ["a", "a"]}}, "each once"),
        ({"images": {"size": 8, "resize": "pad", "slots": "a"}}, "camera names or null"),
        ({"tokenizer": "words"}, "tokenizer: expected a mapping"),
        ({"tokenizer": {"kind": "words", "vocabulary": 64}}, "tokenizer: expected kind, vocabulary and max_tokens"),
        ({"tokenizer": {"kind": "words", "vocabulary": 1, "max_tokens": 4}}, "tokenizer.vocabulary"),
    ],
)
def test_a_bad_entry_is_named(change, told):
    assert Transforms.from_dict(ENTRY).to_dict() == ENTRY
    with pytest.raises(BundleError, match=told):
        Transforms.from_dict({**ENTRY, **change})


@pytest.mark.parametrize("name", ["cameras", "normalisation", "state", "action", "relative", "tokenizer", "horizon"])
def test_a_missing_field_is_named(name):
    with pytest.raises(BundleError, match=name):
        Transforms.from_dict({key: value for key, value in ENTRY.items() if key != name})


def test_an_entry_may_say_what_it_could_leave_out():
    said = Transforms.from_dict({**ENTRY, "width": 2, "prompt": "words", "eps": 0})
    assert said.to_dict() == ENTRY
    assert said.prompt == Prompt()
