"""Attention of several draws to one memory: all of them see it, and each sees its own actions alone.

Training knows more than a general attention kernel is told. Where the memory is frozen its keys and values need no
gradient, which is most of the way back; and no draw meets another's actions, so that part is not computed and masked.
What is kept for the way back is what a fused kernel keeps: the result, and the logarithm of each row's sum (Dao et al.
2022, arXiv 2205.14135, section 3.1). Scores are computed again, as many at a time as a core's cache holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

SCORES = 1 << 19  # at a time; 2 MB
Gradient: TypeAlias = Tensor | None
Block: TypeAlias = tuple[slice, slice]  # of frames, of their draws


class DrawnAttention(torch.autograd.Function):
    """`DrawnAttention.apply(query, held_key, held_value, key, value, visible)`.

    query (batch, draws, actions, heads, head_dim); held_key, held_value (batch, kv_heads, tokens, head_dim), the
    memory; key, value (batch, draws, own, kv_heads, head_dim), what each draw has besides; visible (batch, tokens)
    bool, True for what of the memory may be seen -> as query. Computed in fp32, whatever comes in; several query heads
    may share one key and value head."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, held_key: Tensor, held_value: Tensor, key: Tensor, value: Tensor, visible: Tensor
    ) -> Tensor:
        mixed = query.new_empty(query.shape)
        queries, seen = _by_head(query, key), _bias(visible, key)
        sums = queries.new_empty(*queries.shape[:-1], 1, dtype=torch.float32)
        with torch.autocast("cpu", enabled=False):
            for block in _blocks(queries, held_key, key):
                keys, values = _joined(held_key, key, block), _joined(held_value, value, block)
                scores = _scores(queries[block], keys, seen[block[0]])
                top = scores.amax(-1, keepdim=True)
                total = scores.sub_(top).exp_().sum(-1, keepdim=True)
                _put((scores @ values).div_(total), mixed, block)
                sums[block] = top.add_(total.log_())
        ctx.save_for_backward(queries, held_key, held_value, key, value, visible, mixed, sums)
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Gradient, ...]:
        queries, held_key, held_value, key, value, visible, mixed, sums = ctx.saved_tensors
        of_held_key, of_held_value = (
            torch.zeros_like(held, dtype=torch.float32) if learns else None
            for held, learns in zip((held_key, held_value), ctx.needs_input_grad[1:3], strict=True)
        )
        of_query, of_key, of_value = torch.empty_like(mixed), torch.empty_like(key), torch.empty_like(value)
        tokens, own, seen, scale = held_key.shape[2], key.shape[2], _bias(visible, key), queries.shape[-1] ** -0.5
        mine = slice(tokens, tokens + own)
        spread = _by_head((gradients[0].float() * mixed).sum(-1, keepdim=True), key)
        with torch.autocast("cpu", enabled=False):
            for block in _blocks(queries, held_key, key):
                keys, values = _joined(held_key, key, block), _joined(held_value, value, block)
                asked, given = queries[block].float(), _by_head(gradients[0][block], key).float()
                scores = _scores(asked, keys, seen[block[0]]).sub_(sums[block]).exp_()
                _put(scores[..., mine].mT @ given, of_value, block)
                if of_held_value is not None:
                    of_held_value[block[0]] += (scores[..., :tokens].mT @ given).sum(1)
                slopes = scores.mul_((given @ values.mT).sub_(spread[block])).mul_(scale)
                _put(slopes @ keys, of_query, block)
                _put(slopes[..., mine].mT @ asked, of_key, block)
                if of_held_key is not None:
                    of_held_key[block[0]] += (slopes[..., :tokens].mT @ asked).sum(1)
        return of_query, of_held_key, of_held_value, of_key, of_value, None


def _blocks(queries: Tensor, held: Tensor, key: Tensor) -> Iterator[Block]:
    """Frames with all their draws, as many as fit; where not even one does, as many draws of one."""
    frames, draws = queries.shape[:2]
    each = queries[0, 0, ..., 0].numel() * (held.shape[2] + key.shape[2])
    fit = max(1, SCORES // each)
    if fit < draws:
        return ((slice(n, n + 1), slice(d, d + fit)) for n in range(frames) for d in range(0, draws, fit))
    return ((slice(n, n + fit // draws), slice(None)) for n in range(0, frames, fit // draws))


def _by_head(x: Tensor, key: Tensor) -> Tensor:
    """(frames, draws, actions, heads, n) -> (frames, draws, kv_heads, heads per kv_head * actions, n)."""
    return x.unflatten(3, (key.shape[3], -1)).permute(0, 1, 3, 4, 2, 5).flatten(3, 4)


def _put(rows: Tensor, into: Tensor, block: Block) -> None:
    """What `_by_head` made of a block, back to its place."""
    into[block].copy_(rows.unflatten(3, (-1, into.shape[2])).permute(0, 1, 4, 2, 3, 5).flatten(3, 4))


def _joined(held: Tensor, own: Tensor, block: Block) -> Tensor:
    """(frames, draws, kv_heads, tokens + own, head_dim), for each draw of the block: the memory and its own, and zeros
    up to a multiple of eight, because products with an odd row take up to 1.9 times as long."""
    mine = own[block].transpose(2, 3)
    shared = held[block[0], None].expand(-1, mine.shape[1], -1, -1, -1)
    spare = _spare(held.shape[2] + own.shape[2])
    return torch.cat([shared, mine, mine.new_zeros(()).expand(*mine.shape[:3], spare, mine.shape[4])], 3).float()


def _bias(visible: Tensor, key: Tensor) -> Tensor:
    """0 for what a draw may see of what `_joined` puts together, else minus infinity."""
    bias = torch.zeros_like(visible, dtype=torch.float32).masked_fill_(~visible, -torch.inf)
    own = key.shape[2]
    bias = F.pad(F.pad(bias, (0, own)), (0, _spare(visible.shape[1] + own)), value=-torch.inf)
    return bias[:, None, None, None]


def _spare(count: int) -> int:
    return -count % 8


def _scores(queries: Tensor, keys: Tensor, seen: Tensor) -> Tensor:
    return (queries.float() @ keys.mT).mul_(queries.shape[-1] ** -0.5).add_(seen)
