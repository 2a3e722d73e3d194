"""Attention of draws to one memory is plain attention with a mask, there and back."""

import pytest
import torch
import torch.nn.functional as F

from hotpolicy.runtime.model import draws as module
from hotpolicy.runtime.model.draws import DrawnAttention

FRAMES, ACTIONS, SIZE = 3, 5, 16
SHAPES = {  # heads, kv_heads, draws, tokens of the memory, what a draw has besides its actions, rows of the mask
    "one head read by all": (8, 1, 4, 11, 1, ACTIONS),
    "a head each": (4, 4, 1, 16, 0, 1),
    "shared by two": (4, 2, 3, 7, 1, ACTIONS),
    "one token": (2, 1, 2, 1, 0, 1),
}


def case(shape, dtype=torch.float32, seed=0):
    heads, kv_heads, draws, tokens, besides, rows = shape
    random = torch.Generator().manual_seed(seed)

    def leaf(*size):
        return torch.randn(*size, generator=random).to(dtype).requires_grad_()

    query = leaf(FRAMES, draws, ACTIONS, heads, SIZE)
    held = [leaf(FRAMES, kv_heads, tokens, SIZE) for _ in range(2)]
    own = [leaf(FRAMES, draws, besides + ACTIONS, kv_heads, SIZE) for _ in range(2)]
    visible = torch.rand(FRAMES, rows, tokens + besides + ACTIONS, generator=random) > 0.3
    visible[..., -1] = True  # a row sees something
    return query, *held, *own, visible


def plainly(query, held_key, held_value, key, value, visible):
    """Everything in one sequence, and a mask that says who sees whom."""
    (draws, own), actions = key.shape[1:3], query.shape[2]
    apart = torch.block_diag(*[torch.ones(actions, own, dtype=torch.bool)] * draws)
    tokens, visible = held_key.shape[2], visible.expand(-1, actions, -1).repeat(1, draws, 1)
    mask = torch.cat([visible[..., :tokens], visible[..., tokens:].repeat(1, 1, draws) & apart], 2)[:, None]
    key, value = (torch.cat([held, part.flatten(1, 2).transpose(1, 2)], 2) for held, part in
                  ((held_key, key), (held_value, value)))  # fmt: skip
    mixed = F.scaled_dot_product_attention(
        query.flatten(1, 2).transpose(1, 2), key, value, attn_mask=mask, enable_gqa=True
    )
    return mixed.transpose(1, 2).view_as(query)


def both(given, leaves):
    """Result and gradients of `leaves`, in ours and in the plain one."""
    answers = []
    for attention in (DrawnAttention.apply, plainly):
        mixed = attention(*given)
        gradient = torch.randn(mixed.shape, generator=torch.Generator().manual_seed(1)).to(mixed.dtype)
        answers.append((mixed, *torch.autograd.grad(mixed, leaves, gradient)))
    return zip(*answers, strict=True)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("scores", [1, 700, 1 << 20])
def test_it_is_plain_attention(monkeypatch, shape, scores):
    """However many frames are computed at once."""
    monkeypatch.setattr(module, "SCORES", scores)
    given = case(shape)
    for ours, plain in both(given, given[:5]):
        torch.testing.assert_close(ours, plain, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("learned", [(0, 3, 4), (0, 2, 3, 4), (0, 1, 3, 4)], ids=["frozen", "values", "keys"])
def test_a_frozen_memory_gets_no_gradient(learned):
    given = case(SHAPES["shared by two"])
    for index in {1, 2} - set(learned):
        given[index].requires_grad_(False)
    for ours, plain in both(given, [given[index] for index in learned]):
        torch.testing.assert_close(ours, plain, atol=3e-6, rtol=1e-5)
    DrawnAttention.apply(*given).sum().backward()
    assert [given[index].grad is not None for index in range(5)] == [index in learned for index in range(5)]


def test_extreme_scores_stay_finite():
    query, *rest = case(SHAPES["one head read by all"])
    given = (200 * query.detach()).requires_grad_(), *rest
    for ours, plain in both(given, given[:5]):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, plain, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_computed_in_single(autocast):
    """What comes in and goes out is bf16; the error is that of rounding it, not of adding up in it."""
    given = case(SHAPES["one head read by all"], torch.bfloat16)
    exact = [part.detach().float().requires_grad_() for part in given[:5]]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        mixed = DrawnAttention.apply(*given)
    wanted = plainly(*exact, given[5])
    gradients = torch.autograd.grad(mixed.float().sum(), given[:5])
    assert mixed.dtype == torch.bfloat16
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16] * 5
    torch.testing.assert_close(mixed.float(), wanted, atol=0.01, rtol=0.01)
    for ours, plain in zip(gradients, torch.autograd.grad(wanted.sum(), exact), strict=True):
        torch.testing.assert_close(ours.float(), plain, atol=0.02, rtol=0.02)


def test_it_keeps_no_scores():
    """For the way back: what came in, the result, and one number for each row."""
    kept = []
    given = case((2, 1, 4, 400, 1, 1))
    with torch.autograd.graph.saved_tensors_hooks(lambda part: kept.append(part) or part, lambda part: part):
        DrawnAttention.apply(*given)
    assert max(part.numel() for part in kept) == max(part.numel() for part in given)
