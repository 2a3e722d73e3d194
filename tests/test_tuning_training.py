"""A run learns what it is shown, changes only what its strategy names, and ends in the open when it goes wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tuning_parts import OLD, SPEC, TRANSFORMS, parent_model, samples

from hotpolicy.finetune.cache import CachedPrefixes, ComputedPrefixes, frame_bytes, longest
from hotpolicy.finetune.frames import Frames
from hotpolicy.finetune.held_out import HeldOut
from hotpolicy.finetune.lessons import Lessons
from hotpolicy.finetune.outcome import Outcome
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.finetune.strategy import strategy
from hotpolicy.finetune.trainer import Trainer
from hotpolicy.runtime.errors import ConfigError, TuningError
from hotpolicy.runtime.model.pi0 import Pi0

LESSONS = Lessons(
    new=samples(range(6)),
    old=samples(range(100, 103), OLD),
    new_held_out=samples(range(20, 22)),
    old_held_out=samples(range(120, 121), OLD),
)
SHORT = TuneConfig(steps=12, batch=8, draws=2, warmup=2, evaluate_every=6)


def tune(lessons: Lessons = LESSONS, config: TuneConfig = SHORT, parent: Pi0 | None = None) -> Outcome:
    trainer = Trainer(parent or parent_model(), TRANSFORMS, SPEC, lessons, config)
    for _ in trainer.run():
        pass
    return trainer.outcome


def changed(outcome: Outcome, parent: Pi0) -> set[str]:
    before = dict(parent.named_parameters())
    return {name for name, now in outcome.model.named_parameters() if not torch.equal(now, before[name])}


def test_learns_and_keeps_old_tasks() -> None:
    outcome = tune(config=dataclasses.replace(SHORT, steps=200, batch=16, evaluate_every=100, rate=5e-3))
    first, last = outcome.curves.evaluations[0], outcome.curves.evaluations[-1]
    (new,), (old,) = last.new.values(), last.old.values()
    assert np.mean(outcome.curves.train[-20:]) < 0.5 * np.mean(outcome.curves.train[:5])
    assert new.loss < 0.5 * next(iter(first.new.values())).loss
    assert new.error_deg < next(iter(first.new.values())).error_deg
    assert old.loss < 0.5 * next(iter(first.old.values())).loss
    assert (outcome.step, outcome.stopped, outcome.chosen_by) == (200, "steps", "the last step")


@pytest.mark.parametrize(
    ("name", "may"),
    [
        ("heads", lambda group: group == "heads"),
        ("expert", lambda group: group == "heads" or group.startswith("expert")),
        ("top-1", lambda group: group in ("heads", "language.2") or group.startswith("expert")),
        ("full", lambda group: True),
        ("progressive", lambda group: True),
    ],
)
def test_changes_only_what_the_strategy_names(name: str, may: Callable[[str], bool]) -> None:
    parent = parent_model()
    outcome = tune(config=dataclasses.replace(SHORT, strategy=name), parent=parent)
    groups = parent.groups()
    moved = {groups[tensor] for tensor in changed(outcome, parent)}
    assert moved
    assert all(may(group) for group in moved)
    assert changed(outcome, parent) <= set(outcome.learned)
    if name in ("full", "progressive"):
        assert moved == set(groups.values()) - {"language"}  # language_norm has no effect


def test_the_parent_is_not_touched_and_shares_what_is_frozen() -> None:
    parent = parent_model()
    before = {name: parameter.clone() for name, parameter in parent.named_parameters()}
    outcome = tune(parent=parent)
    assert all(torch.equal(parameter, before[name]) for name, parameter in parent.named_parameters())
    tuned = dict(outcome.model.named_parameters())
    shared = [name for name, parameter in parent.named_parameters() if tuned[name].data_ptr() == parameter.data_ptr()]
    assert set(shared) == set(before) - set(outcome.learned)


def test_the_same_seed_gives_the_same_weights() -> None:
    one, two, other = tune(), tune(), tune(config=dataclasses.replace(SHORT, seed=1))
    assert not changed(one, two.model)
    assert changed(one, other.model)


def test_weights_without_effect_are_not_trained() -> None:
    model = parent_model()
    learning = strategy("full", model).stages[0].learning(model)
    idle = {name for name, _ in model.named_parameters()} - set(learning)
    assert "language_norm.weight" in idle
    assert "language.2.mlp.up_proj.weight" in idle
    model.requires_grad_(True)
    frames = Frames.encode(LESSONS.new, TRANSFORMS)
    rows = torch.arange(4)
    noise, times = torch.randn(4, 1, 4, 3), torch.rand(4, 1)
    model.flow_loss(frames.prefix(model, rows), frames.state[rows], frames.actions[rows], noise, times).sum().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == idle


def test_cached_prefixes_are_exact_and_give_the_same_run() -> None:
    frames = Frames.encode(LESSONS.new, TRANSFORMS)
    model, rows = parent_model(), torch.tensor([5, 0, 70])
    cached = CachedPrefixes(ComputedPrefixes(model, frames), frames)
    assert cached.bytes == len(frames) * frame_bytes(longest(model, frames))
    kept, computed = cached.take(rows), ComputedPrefixes(model, frames).take(rows)
    torch.testing.assert_close(kept, computed, rtol=1e-5, atol=1e-6)
    with_cache, without = tune(), tune(config=dataclasses.replace(SHORT, caching="off"))
    assert with_cache.cache_mb > 0 == without.cache_mb
    np.testing.assert_allclose(with_cache.curves.train, without.curves.train, rtol=1e-3)


def test_a_cache_that_does_not_fit_is_said_or_refused() -> None:
    small = dataclasses.replace(SHORT, cache_bytes=1000)
    outcome = tune(config=small)
    assert "MB allowed: prefixes are computed anew" in outcome.notes[0]
    assert outcome.cache_mb == 0
    with pytest.raises(TuningError, match=r"prefix cache: .* needed"):
        tune(config=dataclasses.replace(small, caching="require"))


def test_a_run_that_diverges_ends_and_leaves_nothing() -> None:
    trainer = Trainer(parent_model(), TRANSFORMS, SPEC, LESSONS, SHORT)
    running = trainer.run()
    next(running), next(running)
    with torch.no_grad():
        trainer.learner.model.action_out_proj.bias.fill_(torch.nan)
    with pytest.raises(TuningError, match="step 2: expected a finite loss"):
        next(running)
    with pytest.raises(TuningError, match="has not finished"):
        _ = trainer.outcome


def test_patience_keeps_the_best_step() -> None:
    """Two frames learned by heart: held-out episodes get worse, and the run ends early with what was best."""
    few = dataclasses.replace(LESSONS, new=LESSONS.new.pick(np.array([0, 1])), old=None, old_held_out=None)
    config = dataclasses.replace(
        SHORT, strategy="full", steps=400, rate=3e-2, ema=0.5, evaluate_every=5, patience=4, replay=0.0
    )
    outcome = tune(few, config)
    assert outcome.stopped == "patience"
    assert outcome.step < outcome.steps < 400
    assert "action error" in outcome.chosen_by
    held = HeldOut(few.new_held_out, TRANSFORMS, SPEC)  # type: ignore[arg-type]
    measured = held.measure(outcome.model, ComputedPrefixes(outcome.model, held.frames))
    chosen = next(at for at in outcome.curves.evaluations if at.step == outcome.step)
    assert next(iter(measured.values())).loss == pytest.approx(next(iter(chosen.new.values())).loss, rel=1e-4)


def test_a_cap_in_seconds_says_so() -> None:
    outcome = tune(config=dataclasses.replace(SHORT, steps=100_000, seconds=0.2))
    assert outcome.stopped == "seconds"
    assert "stopped after 0.2 s" in outcome.notes[-1]


def test_without_anything_to_replay_it_says_so() -> None:
    outcome = tune(dataclasses.replace(LESSONS, old=None, old_held_out=None))
    assert outcome.notes == ("nothing to replay: old tasks may be forgotten",)
    assert outcome.curves.evaluations[-1].old == {}


def test_held_out_figures_do_not_depend_on_what_came_later() -> None:
    model = parent_model()
    few, more = samples(range(20, 22)), samples(range(20, 24))
    one, two = HeldOut(few, TRANSFORMS, SPEC), HeldOut(more, TRANSFORMS, SPEC)
    torch.testing.assert_close(one._loss_noise, two._loss_noise[: len(few)])
    first, again = (one.measure(model, ComputedPrefixes(model, one.frames)) for _ in range(2))
    assert first == again


def test_figures_are_in_degrees_and_percent_whatever_the_units() -> None:
    model, few = parent_model(), samples(range(20, 22))
    plain = HeldOut(few, TRANSFORMS, SPEC)
    units = ("rad", "m", "fraction")
    joints = [dataclasses.replace(joint, unit=unit) for joint, unit in zip(SPEC.joints, units, strict=True)]
    joints[2] = dataclasses.replace(joints[2], low=0, high=1)
    mixed = HeldOut(few, TRANSFORMS, dataclasses.replace(SPEC, joints=tuple(joints)))
    prefixes = ComputedPrefixes(model, plain.frames)
    error = plain._errors(model, prefixes.take(torch.arange(len(few))), torch.arange(len(few))).mean(0)
    (figures,) = mixed.measure(model, prefixes).values()
    assert figures.error_deg == pytest.approx(np.rad2deg(error[0]), rel=1e-4)
    assert figures.error_percent == pytest.approx((error[1] / 1.8 + error[2] * 100) / 2, rel=1e-4)  # of 180 m, and of 1


@pytest.mark.parametrize("name", ["everything", "top-0", "top-4", "top-", "lora-top"])
def test_unknown_strategies_are_refused(name: str) -> None:
    with pytest.raises(
        ConfigError, match="strategy: expected one of heads, expert, lora, lora-expert, top-N, full, progressive"
    ):
        strategy(name, parent_model())


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"replay": 1.0}, {"rate": "fast"}, {"batch": 2.5}, {"colour": 1}])
def test_settings_are_checked_at_the_door(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TuneConfig.from_dict(wrong)
