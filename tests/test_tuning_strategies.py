"""What each strategy trains, how progressive tuning goes from stage to stage; and saving memory changes no result."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from test_tuning_training import LESSONS, SHORT, changed, tune
from tuning_parts import SPEC, TRANSFORMS, full_bundle, parent_model, samples

from hotpolicy.finetune import lora
from hotpolicy.finetune.candidate import seal_candidate
from hotpolicy.finetune.lessons import Lessons
from hotpolicy.finetune.outcome import Outcome
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.finetune.strategy import NAMES, strategy
from hotpolicy.finetune.trainer import Trainer
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.model.pi0 import Pi0
from hotpolicy.runtime.policy import load_policy

LORA = dataclasses.replace(SHORT, strategy="lora", lora_rank=2)


def weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    return dict(outcome.model.named_parameters())


# ── adapters ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def adapted(seed: int = 0, rank: int = 2) -> Pi0:
    """A model whose every language and expert layer has an adapter that does something."""
    model = parent_model()
    layers = list(strategy("lora", model).stages[0].layers(model))
    lora.attach(model, layers, rank, 4.0, torch.Generator().manual_seed(seed))
    for name, parameter in model.named_parameters():
        if lora.is_adapter(name):
            parameter.data.normal_(generator=torch.Generator().manual_seed(seed)).mul_(0.1)
    return model


def answer(model: Pi0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, 1, 16, 16, 3), generator=draw, dtype=torch.uint8)
    seen = (
        images,
        torch.ones(2, 1, dtype=torch.bool),
        torch.tensor([[5, 9], [7, 1]]),
        torch.ones(2, 2, dtype=torch.bool),
    )
    with torch.no_grad():
        prefix = model.prefix(*seen)
        return model.flow(prefix, torch.ones(2, 3), torch.randn(2, 4, 3, generator=draw))


def test_a_fresh_adapter_changes_nothing_and_a_folded_one_answers_as_it_did() -> None:
    plain, model = parent_model(), parent_model()
    layers = list(strategy("lora", model).stages[0].layers(model))
    lora.attach(model, layers, 2, 4.0, torch.Generator().manual_seed(0))
    assert torch.equal(answer(model), answer(plain))
    model = adapted()
    before = answer(model)
    assert (before - answer(plain)).abs().max() > 1e-3
    lora.fold(model)
    torch.testing.assert_close(answer(model), before, atol=2e-6, rtol=1e-5)
    assert set(dict(model.named_parameters())) == set(dict(plain.named_parameters()))
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_without_effect_get_no_adapter() -> None:
    model = parent_model()
    layers = set(strategy("lora", model).stages[0].layers(model))
    assert {"language.2.self_attn.k_proj", "language.1.mlp.up_proj", "expert.0.self_attn.q_proj"} <= layers
    assert not {"language.2.self_attn.q_proj", "language.2.mlp.up_proj", "action_in_proj"} & layers


def test_lora_trains_heads_and_adapters_and_leaves_plain_tensors() -> None:
    parent = parent_model()
    outcome = tune(config=LORA, parent=parent)
    groups, moved = parent.groups(), changed(outcome, parent)
    assert {groups[name] for name in moved} == {"heads"} | {
        f"{part}.{i}" for part in ("language", "expert") for i in range(3)
    }
    assert all(groups[name] == "heads" or parent.get_submodule(name.removesuffix(".weight")) for name in moved)
    assert not any("layernorm" in name for name in moved)
    assert moved <= set(outcome.learned)
    changes = (
        weights(outcome)["expert.1.mlp.up_proj.weight"] - dict(parent.named_parameters())["expert.1.mlp.up_proj.weight"]
    )
    assert torch.linalg.matrix_rank(changes, atol=1e-5) <= LORA.lora_rank


def test_lora_on_the_expert_keeps_the_prefix_so_that_it_is_cached() -> None:
    parent = parent_model()
    config = dataclasses.replace(LORA, strategy="lora-expert", caching="require")
    outcome = tune(config=config, parent=parent)
    assert outcome.cache_mb > 0
    assert {parent.groups()[name].partition(".")[0] for name in changed(outcome, parent)} == {"heads", "expert"}


def test_lora_learns() -> None:
    outcome = tune(config=dataclasses.replace(LORA, steps=100, batch=8, evaluate_every=100, rate=2e-2))
    assert np.mean(outcome.curves.train[-20:]) < 0.6 * np.mean(outcome.curves.train[:5])


def test_a_rank_that_a_layer_does_not_have_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"lora_rank: \S+ is \d+ by \d+, got rank 9"):
        tune(config=dataclasses.replace(LORA, lora_rank=9))


def test_a_candidate_of_adapters_is_an_ordinary_delta(tmp_path: Path) -> None:
    base = full_bundle(tmp_path / "made")
    lessons = dataclasses.replace(LESSONS, rehearsal=None)
    policy = load_policy([base], threads=1)
    trainer = Trainer(policy.engine.model, policy.transforms, SPEC, lessons, LORA)  # type: ignore[attr-defined]
    for _ in trainer.run():
        pass
    sealed = seal_candidate(tmp_path / "made", [base], trainer.outcome, lessons, LORA)
    assert not any("lora" in name for name in sealed.manifest.tensors)
    tuned = load_policy([base, sealed], threads=1).engine.model  # type: ignore[attr-defined]
    for name, parameter in trainer.outcome.model.named_parameters():
        assert torch.equal(parameter, tuned.get_parameter(name)), name


# ── progressive ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_progressive_goes_from_the_heads_to_everything_with_lower_layers_slower() -> None:
    model = parent_model()
    stages = strategy("progressive", model).stages
    assert [stage.name for stage in stages] == ["heads", "expert", "top-2", "full"]
    assert sum(stage.share for stage in stages) == pytest.approx(1)
    learning = [set(stage.learning(model)) for stage in stages]
    assert all(before < after for before, after in pairwise(learning))
    rates = stages[-1].rates
    assert rates["language.0"] < rates["language.1"] < rates["language.2"] < rates["expert.2"] == rates["heads"]


def test_a_stage_that_gained_nothing_is_the_last() -> None:
    """At a rate of almost nothing no stage can make anything better."""
    config = dataclasses.replace(SHORT, strategy="progressive", steps=20, rate=1e-9)
    outcome = tune(config=config)
    assert (outcome.stopped, outcome.steps) == ("stage", 2)
    assert "expert was not entered" in outcome.notes[-1]
    assert all(name in parent_model().groups() for name in outcome.learned)


def test_stages_that_gain_are_followed_by_the_next() -> None:
    config = dataclasses.replace(SHORT, strategy="progressive", steps=80, batch=16, rate=1e-2, evaluate_every=100)
    trainer = Trainer(parent_model(), TRANSFORMS, SPEC, LESSONS, config)
    seen = list(dict.fromkeys(progress.stage for progress in trainer.run()))
    assert seen == ["heads", "expert", "top-2", "full"]
    assert [evaluation.step for evaluation in trainer.outcome.curves.evaluations] == [0, 8, 24, 40, 80]


def test_without_held_out_episodes_every_stage_is_entered() -> None:
    lessons = Lessons(new=samples(range(4)))
    config = dataclasses.replace(SHORT, strategy="progressive", steps=10, rate=1e-9, replay=0.0)
    assert tune(lessons, config).stopped == "steps"


# ── saving memory ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [name for name in NAMES if name != "top-N"])
@pytest.mark.parametrize("saving", [{"accumulate": 3}, {"recompute": True}])
def test_saving_memory_changes_no_result(name: str, saving: dict[str, object]) -> None:
    config = dataclasses.replace(SHORT, strategy=name, steps=6, lora_rank=2, caching="off")
    plain, saved = tune(config=config), tune(config=dataclasses.replace(config, **saving))
    assert saved.curves.train == pytest.approx(plain.curves.train, rel=1e-5)
    for key, parameter in weights(plain).items():
        torch.testing.assert_close(weights(saved)[key], parameter, atol=2e-5, rtol=1e-4)


def test_recomputing_keeps_less() -> None:
    """Bytes that autograd holds on to between the way there and the way back."""

    def kept(recompute: bool) -> int:
        config = TuneConfig(strategy="full", batch=8, draws=2, recompute=recompute)
        trainer = Trainer(parent_model(), TRANSFORMS, SPEC, LESSONS, config)
        total = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            next(steps := trainer.run())
            next(steps)
        return total

    assert kept(True) < 0.5 * kept(False)


def test_bf16_trains_beside_weights_in_fp32() -> None:
    plain = tune(config=dataclasses.replace(SHORT, strategy="full"))
    outcome = tune(config=dataclasses.replace(SHORT, strategy="full", precision="bf16"))
    assert outcome.curves.train == pytest.approx(plain.curves.train, rel=0.05)
    assert outcome.curves.train != plain.curves.train
    assert all(parameter.dtype == torch.float32 for parameter in weights(outcome).values())


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"accumulate": 0}, "accumulate: expected a number from 1"),
        ({"accumulate": 9}, "accumulate: expected at most 8, the batch, got 9"),
        ({"precision": "fp8"}, "precision: expected one of fp32, bf16, got 'fp8'"),
        ({"lora_rank": 1.5}, "lora_rank: expected a whole number"),
        ({"lora_alpha": 0}, "lora_alpha: expected a number from"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        TuneConfig(**{"batch": 8, **wrong})  # type: ignore[arg-type]
