"""The policy network: its size at the published configurations, and what must not depend on what."""

import dataclasses

import pytest
import torch

from hotpolicy.runtime.model.pi0 import NANO, PI0, PI05, GemmaConfig, Pi0, Pi0Config, VisionConfig
from hotpolicy.runtime.model.vla import sample_times

TINY = GemmaConfig(width=32, layers=2, mlp=48, heads=4, kv_heads=2, head_dim=8)
STEM = Pi0Config(VisionConfig("stem", 32, 32, channels=(8, 8)), TINY, TINY, 64, action_dim=5, horizon=4, steps=3)
SIGLIP = dataclasses.replace(STEM, vision=VisionConfig("siglip", 28, 24, layers=2, heads=2, mlp=32, patch=14))
CONFIGS = {
    "stem": STEM,
    "siglip": SIGLIP,
    "pi05": dataclasses.replace(SIGLIP, pi05=True),
    "steps": dataclasses.replace(STEM, step_embedding=True),
}


def build(config: Pi0Config) -> Pi0:
    torch.manual_seed(0)
    model = Pi0(config)
    with torch.no_grad():  # norms and gates start at zero, which would hide mistakes
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.requires_grad_(False)


def frame(config: Pi0Config, batch: int = 2, cameras: int = 2) -> tuple[torch.Tensor, ...]:
    size = config.vision.image_size
    images = torch.randint(0, 255, (batch, cameras, size, size, 3), dtype=torch.uint8)
    tokens = torch.randint(1, config.vocabulary, (batch, 6))
    mask = torch.arange(6)[None] < torch.tensor([[6], [3]])[:batch]
    return images, torch.ones(batch, cameras, dtype=torch.bool), tokens, mask


@pytest.mark.parametrize(("config", "count"), [(PI0, 3_238_048_528), (PI05, 3_353_433_872)])
def test_published_sizes(config, count):
    """Counted from the released checkpoints, without their two unused output heads."""
    with torch.device("meta"):
        assert sum(p.numel() for p in Pi0(config).parameters()) == count


def test_nano_is_small_and_its_head_smaller():
    model = Pi0(NANO)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    head = sum(n for name, n in sizes.items() if model.groups()[name].split(".")[0] in ("expert", "heads"))
    assert 1_000_000 < sum(sizes.values()) < 2_000_000
    assert head < 0.5 * sum(sizes.values())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_draws_do_not_see_each_other(config):
    model, (images, seen, tokens, mask) = build(config), frame(config)
    prefix = model.prefix(images, seen, tokens, mask)
    state, noise, times = torch.randn(2, 5), torch.randn(2, 3, 4, 5), sample_times((2, 3))
    together = model.velocity(prefix, state, noise, times)
    for draw in range(3):
        alone = model.step(prefix, state, noise[:, draw], times[:, draw])
        torch.testing.assert_close(together[:, draw], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_padding_and_absent_cameras_change_nothing(config):
    model, (images, seen, tokens, mask) = build(config), frame(config)
    state, noise = torch.randn(2, 5), torch.randn(2, 4, 5)
    seen[:, 1] = False
    before = model.flow(model.prefix(images, seen, tokens, mask), state, noise)
    images[:, 1] = 7
    tokens[1, 3:] = 9
    after = model.flow(model.prefix(images, seen, tokens, mask), state, noise)
    torch.testing.assert_close(before, after)
    # ... and a camera slot left out altogether is the same as one that is masked
    trimmed = model.flow(model.prefix(images[:, :1], seen[:, :1], tokens, mask), state, noise)
    torch.testing.assert_close(before, trimmed, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_what_actions_depend_on(config):
    model, (images, seen, tokens, mask) = build(config), frame(config)
    state, noise = torch.randn(2, 5), torch.randn(2, 4, 5)
    base = model.flow(model.prefix(images, seen, tokens, mask), state, noise)

    def moved(images=images, tokens=tokens, state=state, noise=noise):
        changed = model.flow(model.prefix(images, seen, tokens, mask), state, noise)
        return float((changed - base).abs().amax())

    assert moved(images=255 - images) > 1e-4
    assert moved(tokens=(tokens + 1) % config.vocabulary) > 1e-4
    assert moved(noise=noise + 1) > 1e-3
    late = noise.clone()
    late[:, -1] += 1  # actions see each other both ways: the last one moves the first
    assert float((model.flow(model.prefix(images, seen, tokens, mask), state, late) - base)[:, 0].abs().amax()) > 1e-6
    # pi0.5 reads the state from its prompt, not from here
    assert (moved(state=state + 1) > 1e-4) == (not config.pi05)


def test_what_tokens_may_see():
    """The state token sees the prefix and itself; actions see all of that and each other, and no other draw."""
    model = build(STEM)
    prefix, length = model.prefix(*frame(STEM)), model.config.horizon
    learning = model.remember(prefix, torch.randn(2, 5), draws=2)
    for row, mask in zip(learning.visible.tolist(), prefix.mask.tolist(), strict=True):
        assert row == [[*mask, True, *[False] * length], *[[*mask, *[True] * (1 + length)]] * length]
    with torch.inference_mode():
        served = model.remember(prefix, torch.randn(2, 5))
    assert served.visible[:, 0].tolist() == [[*mask, *[True] * (1 + length)] for mask in prefix.mask.tolist()]
    assert {key.shape[2] for key in served.keys} == {prefix.mask.shape[1] + 1 + length}


def test_groups_name_every_parameter():
    groups = set(build(CONFIGS["siglip"]).groups().values())
    expected = {"vision", "projector", "embedding", "language", "heads"}
    assert groups == expected | {f"{part}.{layer}" for part in ("language", "expert") for layer in range(2)}


def test_config_survives_json():
    import json

    for config in (PI05, *CONFIGS.values()):
        assert Pi0Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(TypeError, match="colour"):
        Pi0Config.from_dict({**STEM.to_dict(), "colour": 1})


def test_the_flow_recovers_what_a_perfect_velocity_says():
    """With v = noise - actions constant along the path, Euler lands on the actions in any number of steps."""
    model = build(STEM)
    actions, noise = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    model.advance = lambda memory, x, moment: (noise - actions)[:, None]
    prefix = model.prefix(*frame(STEM))
    for steps in (1, 3, 10):
        torch.testing.assert_close(model.flow(prefix, torch.zeros(2, 5), noise, model.schedule(steps)), actions)


def test_training_times_favour_noise():
    times = sample_times((20_000,), torch.Generator().manual_seed(0))
    assert times.min() >= 0.001
    assert times.max() <= 1.0
    assert abs(float(times.mean()) - (0.6 * 0.999 + 0.001)) < 0.01  # Beta(1.5, 1) has mean 0.6
