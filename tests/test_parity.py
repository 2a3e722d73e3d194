"""Our model gives LeRobot's answers: the same weights and inputs, K/V, one step, the whole sample and the loss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from golden_pi0 import FAMILIES, PARTS, SIZES, Golden, answers, fill, gap, load, mix_as_lerobot, mix_as_served, spread

from hotpolicy.runtime.model.pi0 import Pi0

TOLERANCE = 1e-5
MIXES = {  # and how near to fp32, in LeRobot's own distance from it
    "lerobot": (mix_as_lerobot, 1.25),  # two bf16 computations in different orders
    "served": (mix_as_served, 2.0),  # vision in bf16 as well, as openpi has it
}


@pytest.fixture(scope="module", params=[(family, size) for size in SIZES for family in FAMILIES], ids="-".join)
def golden(request: pytest.FixtureRequest) -> Golden:
    return load(*request.param)


@pytest.fixture(scope="module", params=["served", "learning"])  # they keep and compute different things
def ours(golden: Golden, request: pytest.FixtureRequest) -> dict[str, torch.Tensor]:
    with torch.set_grad_enabled(request.param == "learning"):
        return {name: found.detach() for name, found in answers(fill(Pi0(golden.config), golden.seed), golden).items()}


@pytest.mark.parametrize("part", PARTS)
def test_fp32_is_lerobots(golden: Golden, ours: dict[str, torch.Tensor], part: str) -> None:
    assert gap(ours[part], golden[part]) < TOLERANCE


@pytest.mark.parametrize(("mix", "floors"), MIXES.values(), ids=MIXES)
def test_bf16_is_about_as_near_to_fp32_as_lerobots(golden: Golden, mix: Callable[[Pi0], Pi0], floors: float) -> None:
    with torch.inference_mode():
        found = answers(mix(fill(Pi0(golden.config), golden.seed)), golden)
    assert found["keys"].dtype == torch.bfloat16
    assert gap(found["time"], golden["time"]) < TOLERANCE  # never in bf16
    for part in ("step", "sample"):
        assert found[part].dtype == torch.float32
        assert golden.floor(part) / 2 < spread(found[part], golden[part]) < golden.floor(part) * floors


@pytest.mark.parametrize("mix", [mix for mix, _ in MIXES.values()], ids=MIXES)
def test_time_in_bf16_is_far_above_the_floor(
    golden: Golden, mix: Callable[[Pi0], Pi0], monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = Pi0.moment
    monkeypatch.setattr(Pi0, "moment", lambda model, t: moment(model, t.bfloat16().float()))
    found = answers(mix(fill(Pi0(golden.config), golden.seed)), golden)
    assert spread(found["sample"], golden["sample"]) > 10 * golden.floor("sample")


def test_goldens_have_what_hides_mistakes(golden: Golden) -> None:
    """A camera is missing, prompts differ in length and one is padded, and nothing stored is trivial."""
    cameras, words = golden["image_mask"], golden["token_mask"].sum(1)
    assert cameras.shape[1] == 3
    assert (cameras.sum(1) == 2).all()
    assert len(set(words.tolist())) > 1
    assert words.min() < golden["token_mask"].shape[1]
    assert len(golden["keys"]) == sum(cameras.sum(1)) * golden.config.vision.tokens + words.sum()
    for part in PARTS:
        assert golden[part].abs().max() > 0.9
    model = fill(Pi0(golden.config), golden.seed)
    assert all(parameter.std() > 0.01 for parameter in model.parameters())


def test_goldens_cover_heads_that_share_keys() -> None:
    shared = {(load("pi0", size).config.language.heads, load("pi0", size).config.language.kv_heads) for size in SIZES}
    assert shared == {(8, 1), (8, 2)}
