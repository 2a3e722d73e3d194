"""Every key of the published checkpoints is accounted for, and what is not right is named."""

from __future__ import annotations

import pytest
import torch
from published_keys import FAMILIES, published

from hotpolicy.runtime.model.pi0 import PI0, PI05, Pi0
from hotpolicy.runtime.model.weights import EMBEDDING, EXPERT_HEAD, TIED_HEAD, Depths, part, published_to_ours

CONFIGS = {"pi0": PI0, "pi05": PI05}
COUNTS = {"pi0": 778, "pi05": 813}
STATE_PROJ = "state_proj.weight"


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_published_key_becomes_a_parameter_of_that_shape(family: str) -> None:
    shapes = published(family)
    assert len(shapes) == COUNTS[family]
    plan = published_to_ours(shapes)
    with torch.device("meta"):
        ours = dict(Pi0(CONFIGS[family]).named_parameters())
    assert {ours: shapes[key] for key, ours in plan.names.items()} == {
        name: tuple(parameter.shape) for name, parameter in ours.items()
    }
    assert plan.pi05 is (family == "pi05")
    assert plan.depths == Depths(vision=27, language=18, expert=18)
    assert set(plan.dead) == {TIED_HEAD, EXPERT_HEAD}
    assert plan.complete
    assert plan.tied == ()


def test_parts_are_the_model_s_parameter_groups(family: str) -> None:
    with torch.device("meta"):
        groups = Pi0(CONFIGS[family]).groups()
    assert {name: part(name) for name in groups} == groups


def test_the_embedding_is_taken_under_either_name(family: str) -> None:
    keys = set(published(family))
    both, first, second = (published_to_ours(keys - left_out) for left_out in (set(), {TIED_HEAD}, {EMBEDDING}))
    assert both.names[EMBEDDING] == first.names[EMBEDDING] == second.names[TIED_HEAD] == "embedding.weight"
    assert (first.tied, second.tied) == ((), (TIED_HEAD,))
    assert TIED_HEAD in both.dead
    assert TIED_HEAD not in first.dead + second.dead
    assert both.complete
    assert first.complete
    assert second.complete
    neither = published_to_ours(keys - {EMBEDDING, TIED_HEAD})
    assert neither.missing == {EMBEDDING: "embedding.weight"}


def test_a_prefix_changes_nothing_but_the_spelling(family: str) -> None:
    bare = published_to_ours(published(family))
    prefixed = published_to_ours(f"model.{key}" for key in published(family))
    assert {key.removeprefix("model."): name for key, name in prefixed.names.items()} == bare.names
    assert all(key.startswith("model.") for key in (*prefixed.names, *prefixed.dead))
    assert prefixed.complete


def test_one_name_twice_is_unknown() -> None:
    plan = published_to_ours([*published("pi0"), f"model.{STATE_PROJ}"])
    assert plan.unknown == (f"model.{STATE_PROJ}",)


@pytest.mark.parametrize("count", [1, 5])
def test_each_missing_key_is_named(family: str, count: int) -> None:
    shapes = published(family)
    needed = [key for key in shapes if key not in (TIED_HEAD, EXPERT_HEAD, EMBEDDING)]
    for start in range(0, len(needed), 37):
        gone = set(needed[start : start + count])
        plan = published_to_ours(set(shapes) - gone)
        assert set(plan.missing) == gone
        assert not plan.unknown


def test_a_layer_that_only_one_stack_has_is_missing_in_the_other() -> None:
    gone = {key for key in published("pi0") if "gemma_expert.model.layers.17." in key}
    assert set(published_to_ours(set(published("pi0")) - gone).missing) == gone


def test_the_family_is_told_from_the_keys_and_a_mixture_is_not_complete() -> None:
    pi0, pi05 = published("pi0"), published("pi05")
    plan = published_to_ours([*pi05, STATE_PROJ, "state_proj.bias"])
    assert plan.pi05
    assert set(plan.unknown) == {STATE_PROJ, "state_proj.bias"}
    plan = published_to_ours([*pi0, "time_mlp_in.weight"])
    assert not plan.pi05
    assert plan.unknown == ("time_mlp_in.weight",)


def test_a_foreign_key_is_unknown() -> None:
    strange = "normalize_inputs.buffer_observation_state.mean"
    assert published_to_ours([*published("pi0"), strange]).unknown == (strange,)


def test_short_stacks_are_counted() -> None:
    assert published_to_ours(published("pi05", layers=2, vision_layers=3)).depths == Depths(3, 2, 2)
