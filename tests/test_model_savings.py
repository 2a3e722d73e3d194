"""What the model leaves out is really left out, and leaves the actions as they were."""

import pi0_plainly
import pytest
import torch
from test_model_pi0 import CONFIGS, build, frame

PRESENT = {  # (rows, cameras)
    "all": [[True, True, True], [True, True, True]],
    "one absent": [[True, False, True], [True, False, True]],
    "another in each row": [[True, True, False], [False, True, True]],
    "fewer in one row": [[True, False, False], [True, True, True]],
    "none": [[False] * 3, [False] * 3],
}
USED = {"full": (6, 6), "ragged": (5, 2), "short": (1, 1)}  # words of each row, of 6


def calls(module: torch.nn.Module) -> list[torch.Size]:
    """The shapes of what a module is given, from now on."""
    shapes: list[torch.Size] = []
    module.register_forward_hook(lambda _, given, __: shapes.append(given[0].shape))
    return shapes


def case(config, present="one absent", used="ragged"):
    images, _, tokens, _ = frame(config, cameras=3)
    mask = torch.arange(6)[None] < torch.tensor(USED[used])[:, None]
    inputs = images, torch.tensor(PRESENT[present]), tokens, mask
    return inputs, torch.randn(2, config.action_dim), torch.randn(2, config.horizon, config.action_dim)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("present", PRESENT)
@pytest.mark.parametrize("used", USED)
def test_actions_are_those_without_any_saving(config, present, used):
    model = build(config)
    inputs, state, noise = case(config, present, used)
    expected = pi0_plainly.actions(model, inputs, state, noise)
    computed = model.flow(model.prefix(*inputs), state, noise)  # gradients on: keys and values are joined anew
    torch.testing.assert_close(computed, expected, atol=1e-5, rtol=0)
    with torch.inference_mode():  # they are written into one buffer, and time is known already
        served = model.flow(model.prefix(*inputs), state, noise, model.schedule())
        masked = model.flow(model.prefix(*inputs, packed=False), state, noise)
    torch.testing.assert_close(served, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(masked, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("present", PRESENT)
def test_absent_cameras_and_padding_are_not_computed(present):
    model = build(CONFIGS["siglip"])
    inputs, _, _ = case(model.config, present)
    looked, read = calls(model.vision), calls(model.language[0].mlp)
    prefix = model.prefix(*inputs)
    cameras = torch.tensor(PRESENT[present]).sum(1)
    assert looked[0][0] == cameras.sum()
    longest = int((cameras * model.config.vision.tokens + torch.tensor(USED["ragged"])).max())
    assert read[0][1] == prefix.mask.shape[1] == prefix.keys[0].shape[2] == longest


@pytest.mark.parametrize("name", ["siglip", "pi05"])
@torch.inference_mode()
def test_what_does_not_change_within_a_chunk_is_computed_once(name):
    model = build(CONFIGS[name])
    inputs, state, noise = case(model.config)
    prefix = model.prefix(*inputs)
    schedule = model.schedule()
    timed = ["time_mlp_in", "time_mlp_out", "expert_norm.dense", "expert.0.input_layernorm.dense"]
    timed = [calls(model.get_submodule(part)) for part in (timed if model.config.pi05 else ["action_time_mlp_in"])]
    stood = [] if model.config.pi05 else calls(model.state_proj)
    stepped, entered = calls(model.action_out_proj), calls(model.expert[0].mlp)
    model.flow(prefix, state, noise, schedule)
    assert not any(timed)
    assert len(stepped) == model.config.steps
    if not model.config.pi05:
        assert len(stood) == 1
        assert len(entered) == 1 + model.config.steps
    assert all(shape[-2] == model.config.horizon for shape in entered[-model.config.steps :])


def test_the_last_language_layer_computes_only_keys_and_values():
    model = build(CONFIGS["siglip"])
    last = model.language[-1]
    unused = (last.self_attn.q_proj, last.self_attn.o_proj, last.mlp, last.post_attention_layernorm)
    idle = [calls(part) for part in (*unused, model.language_norm)]
    used = calls(last.self_attn.k_proj)
    model.prefix(*case(model.config)[0])
    assert used
    assert not any(idle)


@pytest.mark.parametrize("name", ["siglip", "pi05"])
def test_a_schedule_belongs_to_the_weights_it_was_made_of(name):
    model = build(CONFIGS[name])
    inputs, state, noise = case(model.config)
    prefix, old = model.prefix(*inputs), model.schedule()
    before = model.flow(prefix, state, noise, old)
    part = model.time_mlp_out if model.config.pi05 else model.action_time_mlp_in
    part.bias.add_(0.5)
    assert (model.flow(prefix, state, noise) - before).abs().max() > 1e-3
    torch.testing.assert_close(model.flow(prefix, state, noise, old), before)  # it remembers the old weights
    torch.testing.assert_close(model.flow(prefix, state, noise, model.schedule()), model.flow(prefix, state, noise))


def test_gradients_are_those_without_any_saving():
    """Every parameter that acts learns the same; two draws share one frame and do not see each other."""
    for name in ("steps", "pi05"):
        model = build(CONFIGS[name])
        inputs, state, noise = case(model.config, "another in each row")
        model.requires_grad_(True)

        def gradients(answer, model=model):
            model.zero_grad()
            answer.pow(2).mean().backward()
            return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}

        draws, times = torch.stack([noise, -noise], 1), torch.tensor([[0.9, 0.2]]).expand(2, -1)
        ours = gradients(model.velocity(model.prefix(*inputs), state, draws, times))
        memory = pi0_plainly.read(model, *inputs)
        plain = [pi0_plainly.velocity(model, *memory, state, draws[:, i], float(times[0, i])) for i in (0, 1)]
        plainly = gradients(torch.stack(plain, 1))
        assert ours.keys() == plainly.keys()
        for key, gradient in plainly.items():
            torch.testing.assert_close(ours[key], gradient, atol=1e-5, rtol=1e-3, msg=key)
