"""A chunk that keeps to what the last one promised: as LeRobot's does, and no row more than was asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import golden_pi0
import numpy as np
import pytest
import torch
from promised import promised
from test_torch_engine import CONFIGS, made_up, model_of
from torch import Tensor
from toy_family import Toy, ToyConfig

from hotpolicy.runtime import rtc
from hotpolicy.runtime.engine import Batch, Guidance
from hotpolicy.runtime.engine.torch_engine import TorchEngine
from hotpolicy.runtime.model.guided import Promise, strengths
from hotpolicy.runtime.model.pi0 import Pi0, Pi0Config
from hotpolicy.runtime.model.vla import Prefix

LEROBOT = Path(__file__).parent / "golden" / "rtc" / "lerobot.npz"
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@pytest.mark.parametrize("schedule", rtc.SCHEDULES)
def test_weights_are_lerobots(schedule: rtc.Schedule) -> None:
    with np.load(LEROBOT) as file:
        for (delay, end, horizon), theirs in zip(file["cases"].tolist(), file[f"weights_{schedule}"], strict=True):
            np.testing.assert_allclose(rtc.weights(schedule, delay, end, horizon), theirs[:horizon], atol=1e-6)


@pytest.mark.parametrize("family", golden_pi0.FAMILIES)
@torch.inference_mode()
def test_guided_actions_are_lerobots(family: str) -> None:
    """All joints of its small model, seven of them the robot's, the others padding."""
    with np.load(LEROBOT) as file:
        samples, answers = json.loads(str(file["samples"])), torch.from_numpy(file[family])
    golden = golden_pi0.load(family, "small")
    model = golden_pi0.fill(Pi0(golden.config), golden.seed)
    prefix = model.prefix(golden["images"], golden["image_mask"], golden["tokens"], golden["token_mask"])
    for (schedule, delay, end, limit, steps), theirs in zip(samples, answers, strict=True):
        previous = golden["actions"].clone()
        previous[..., 7:] = 0
        weight = torch.from_numpy(rtc.weights(schedule, delay, end, golden.config.horizon))
        promise = Promise(previous, weight.expand(2, -1), torch.full((2,), limit))
        state, noise, times = golden["state"], golden["noise"], model.schedule(steps)
        ours = model.flow(prefix, state, noise, times, promise)
        assert golden_pi0.gap(ours, theirs) < 1e-5
        assert golden_pi0.gap(model.flow(prefix, state, noise, times), theirs) > 0.5  # it is not the same anyway


@configs
def test_rows_without_weight_are_the_same_to_the_last_bit(config: Pi0Config) -> None:
    engine, batch = TorchEngine(model_of(config)), made_up(config, rows=3)
    free, guided = engine.infer(batch), engine.infer(promised(batch, rows=(1,)))
    np.testing.assert_array_equal(guided[[0, 2]], free[[0, 2]])
    assert np.abs(guided[1] - free[1]).max() > 0.1
    none = replace(batch, guidance=Guidance.none(*batch.noise.shape))
    np.testing.assert_array_equal(engine.infer(none), free)


@configs
def test_a_row_does_not_know_of_the_others(config: Pi0Config) -> None:
    engine, batch = TorchEngine(model_of(config)), promised(made_up(config, rows=3), rows=(0, 2))
    together = engine.infer(batch)
    for row in range(3):
        np.testing.assert_allclose(engine.infer(_only(batch, row)), together[row : row + 1], atol=1e-5)


def _only(batch: Batch, row: int) -> Batch:
    one = slice(row, row + 1)
    assert batch.guidance is not None
    guidance = Guidance(batch.guidance.previous[one], batch.guidance.weight[one], batch.guidance.limit[one])
    images, image_mask, tokens = batch.images[one], batch.image_mask[one], batch.tokens[one]
    return Batch(images, image_mask, tokens, batch.token_mask[one], batch.state[one], batch.noise[one], guidance)


@configs
def test_what_is_executed_already_is_as_promised(config: Pi0Config) -> None:
    config = replace(config, steps=10)
    engine, batch = TorchEngine(model_of(config)), made_up(config, rows=2)
    previous = np.random.default_rng(1).standard_normal(batch.noise.shape, np.float32)
    weight = np.tile(rtc.weights("zeros", 2, config.horizon, config.horizon), (2, 1))
    far = np.abs(engine.infer(batch) - previous)[:, :2]
    for limit, share in ((10.0, 0.1), (1.0, 0.7)):
        guidance = Guidance(previous, weight, np.full(2, limit, np.float32))
        near = np.abs(engine.infer(replace(batch, guidance=guidance)) - previous)[:, :2]
        assert near.max() < share * far.max()


@configs
def test_a_limit_beyond_the_number_of_steps_does_not_throw_the_flow_away(config: Pi0Config) -> None:
    """In one step of size 1 / n, a pull of n goes to the promise; anything more goes past it."""
    engine, batch = TorchEngine(model_of(config)), made_up(config, rows=2)
    bounded = engine.infer(promised(batch, (0, 1), limit=config.steps))
    np.testing.assert_array_equal(engine.infer(promised(batch, (0, 1), limit=1e6)), bounded)
    assert np.abs(engine.infer(promised(batch, (0, 1), limit=1.0)) - bounded).max() > 1e-2


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 10, 100])
def test_strength_over_time(steps: int) -> None:
    times = 1 - np.arange(1, steps) / steps
    expected = (times**2 + (1 - times) ** 2) / (times * (1 - times))
    np.testing.assert_allclose(strengths(steps), [steps, *expected], rtol=1e-9)
    assert max(strengths(steps)) <= steps


def test_any_family_can_be_guided() -> None:
    torch.manual_seed(0)
    model = Toy(ToyConfig(width=8, vocabulary=4, action_dim=3, horizon=5, steps=10)).requires_grad_(False)
    prefix = Prefix((torch.randn(2, 1, 4, 8),), (torch.randn(2, 1, 4, 8),), torch.ones(2, 4, dtype=torch.bool))
    state, noise, previous = torch.randn(2, 3), torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    weight = torch.tensor([[1.0, 1, 1, 1, 1], [0, 0, 0, 0, 0]])

    def distance(promise: Promise | None) -> Tensor:
        return (model.flow(prefix, state, noise, promise=promise) - previous).abs().amax((1, 2))

    free, guided = distance(None), distance(Promise(previous, weight, torch.full((2,), 10.0)))
    assert guided[0] < 0.15 * free[0]
    assert guided[1] == free[1]
