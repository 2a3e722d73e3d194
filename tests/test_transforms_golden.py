"""Our transforms against openpi's and LeRobot's own: their answers were kept by scripts in tests/golden."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from hotpolicy.runtime.tokenizer import SentencePieceTokenizer
from hotpolicy.runtime.transforms import Normalise, Prompt, Quantile, Relative, Transforms, resize_with_pad

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
from transform_cases import BUDGET, HORIZON, PROMPTS, SIZES, WIDTH, numbers, picture, states  # noqa: E402

THEIRS = {name: np.load(GOLDEN / "transforms" / f"{name}.npz") for name in ("openpi", "lerobot")}
MODEL = GOLDEN / "transforms" / "tokenizer.model"
EPS = {("openpi", "mean_std"): 1e-6, ("openpi", "quantile"): 1e-6, ("lerobot", "mean_std"): 1e-8,
       ("lerobot", "quantile"): 0.0, ("lerobot", "min_max"): 0.0}  # fmt: skip


def transforms(kind: str, eps: float) -> Transforms:
    given = numbers()
    first, second = ("mean", "std") if kind == "mean_std" else ("q01", "q99")
    made = (Normalise if kind == "mean_std" else Quantile)(
        given[first].astype(np.float32), given[second].astype(np.float32), eps
    )
    tokenizer = SentencePieceTokenizer.load(MODEL, 48)
    return Transforms(("a",), made, made, Relative(given["mask"]), tokenizer, width=WIDTH, horizon=HORIZON)


@pytest.mark.parametrize(("who", "kind"), EPS)
def test_numbers(who, kind):
    """State and actions normalised and padded, and answers brought back. openpi computes in float64, LeRobot in
    float32 as we do."""
    ours, given, theirs = transforms(kind, EPS[who, kind]), numbers(), THEIRS[who]
    np.testing.assert_allclose(ours.encode_state(given["state"]), theirs[f"{kind}_state"], rtol=0, atol=1e-6)
    encoded = ours.encode_actions(given["actions"], given["state"])
    np.testing.assert_allclose(encoded, theirs[f"{kind}_actions"], rtol=0, atol=1e-6)
    joints = given["state"].shape[1]
    decoded = theirs[f"{kind}_decoded"][..., :joints]  # openpi cuts the padding off in each robot's outputs
    np.testing.assert_allclose(ours.decode(given["answers"], given["state"]), decoded, rtol=0, atol=3e-5)


@pytest.mark.parametrize("size", SIZES)
def test_pictures_are_those_of_openpi(size):
    ours = resize_with_pad(picture(*size), SIZES[size], SIZES[size])
    np.testing.assert_array_equal(ours, THEIRS["openpi"]["image_{}x{}".format(*size)])


@pytest.mark.parametrize("size", SIZES)
def test_pictures_of_lerobot_differ_in_detail_only(size):
    """Made smaller, theirs samples where ours averages: plain parts agree, fine detail does not. Where nothing is
    left out (made larger, or as it is) they agree; and the black bars are the same."""
    target = SIZES[size]
    ours = resize_with_pad(picture(*size), target, target).astype(int)
    theirs = THEIRS["lerobot"]["image_{}x{}".format(*size)].astype(int)
    np.testing.assert_array_equal((ours == 0).all(-1), (theirs == 0).all(-1))
    difference = np.abs(ours - theirs)
    if max(size) <= target:
        assert difference.max() <= 1
    else:
        assert np.median(difference) <= 1
        assert difference.max() > 40


@pytest.mark.parametrize(("who", "format_"), [("openpi", "pi0"), ("openpi", "pi05"), ("lerobot", "pi0_lerobot"),
                                              ("lerobot", "pi05")])  # fmt: skip
def test_prompts(who, format_):
    """Token for token: openpi reads sentencepiece, LeRobot the conversion of it that transformers makes."""
    name = format_.removesuffix("_lerobot")
    tokenizer, prompt = SentencePieceTokenizer.load(MODEL, BUDGET[name]), Prompt(format_)
    for row, (task, state) in enumerate(zip(PROMPTS, states(), strict=True)):
        ids, mask = tokenizer.encode(*prompt.pieces(task, state))
        np.testing.assert_array_equal(mask, THEIRS[who][f"{name}_mask"][row], err_msg=task)
        np.testing.assert_array_equal(ids[mask], THEIRS[who][f"{name}_tokens"][row][mask], err_msg=task)


def test_the_two_prompts_of_pi0_differ_where_the_instruction_is_not_clean():
    openpi, lerobot = THEIRS["openpi"]["pi0_tokens"], THEIRS["lerobot"]["pi0_tokens"]
    same = [np.array_equal(one, other) for one, other in zip(openpi, lerobot, strict=True)]
    clean = [task == task.strip().replace("_", " ").replace("\n", " ") for task in PROMPTS]
    assert same[0]
    assert not same[1]
    assert [s for s, c in zip(same, clean, strict=True) if c] == [True] * sum(clean)
