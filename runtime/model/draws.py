"""Attention of several draws to one memory: all of them see it, and each sees its own actions alone.

Training knows more than a general attention kernel is told. Where the memory is frozen its keys and values need no
gradient, which is most of the way back; and no draw meets another's actions, so that part is not computed and masked.
What is kept for the way back is what a fused kernel keeps: the result, and the logarithm of each row's sum (Dao et al.
2022, arXiv 2205.14135, section 3.1). Scores are computed again, some at a time, so that they stay in the caches.
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
Pair: TypeAlias = tuple[Tensor, Tensor]  # for keys, for values


class DrawnAttention(torch.autograd.Function):
    """`DrawnAttention.apply(query, held_key, held_value, key, value, visible)`.

    query (batch, draws, actions, heads, head_dim); held_key, held_value (batch, kv_heads, tokens, head_dim), the
    memory; key, value (batch, draws, own, kv_heads, head_dim), what each draw has besides; visible (batch, actions or
    1, tokens + own) bool, True for what may be seen -> as query. Computed in fp32, whatever comes in; several query
    heads may share one key and value head."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, held_key: Tensor, held_value: Tensor, key: Tensor, value: Tensor, visible: Tensor
    ) -> Tensor:
        mixed = query.new_empty(query.shape)
        queries, bias = _by_head(query, key), _bias(visible)
        sums = queries.new_empty(*queries.shape[:-1], 1, dtype=torch.float32)
        with torch.autocast("cpu", enabled=False):
            for block, keys, values in _walk(queries, (held_key, held_value), (key, value)):
                scores = _scores(queries[block], keys, bias[block[0]])
                top = scores.amax(-1, keepdim=True)
                total = scores.sub_(top).exp_().sum(-1, keepdim=True)
                _put((scores @ values).div_(total), mixed, block)
                sums[block] = top.add_(total.log_())
        ctx.save_for_backward(queries, held_key, held_value, key, value, visible, mixed, sums)
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Gradient, ...]:
        queries, held_key, held_value, key, value, visible, mixed, sums = ctx.saved_tensors
        of_query, of_key, of_value = torch.empty_like(mixed), torch.empty_like(key), torch.empty_like(value)
        of_held_key, of_held_value = (
            torch.zeros_like(held, dtype=torch.float32) if learns else None
            for held, learns in zip((held_key, held_value), ctx.needs_input_grad[1:3], strict=True)
        )
        tokens, scale, bias = held_key.shape[2], queries.shape[-1] ** -0.5, _bias(visible)
        mine = slice(tokens, tokens + key.shape[2])
        spread = _by_head((gradients[0].float() * mixed).sum(-1, keepdim=True), key)
        with torch.autocast("cpu", enabled=False):
            for block, keys, values in _walk(queries, (held_key, held_value), (key, value)):
                asked, given = queries[block].float(), _by_head(gradients[0][block], key).float()
                scores = _scores(asked, keys, bias[block[0]]).sub_(sums[block]).exp_()
                _put(scores[..., mine].mT @ given, of_value, block)
                if of_held_value is not None:
                    of_held_value[block[0]] += (scores[..., :tokens].mT @ given).sum(1)
                slopes = scores.mul_((given @ values.mT).sub_(spread[block]))
                _put(slopes @ keys, of_query, block)
                asked = asked * scale
                _put(slopes[..., mine].mT @ asked, of_key, block)
                if of_held_key is not None:
                    of_held_key[block[0]] += (slopes[..., :tokens].mT @ asked).sum(1)
        return of_query, of_held_key, of_held_value, of_key, of_value, None


def _walk(queries: Tensor, held: Pair, own: Pair) -> Iterator[tuple[Block, Tensor, Tensor]]:
    """As many frames with all their draws as fit, or as many draws of one; with each block its keys, scaled,
    and its values (frames, draws, kv_heads, tokens + own, head_dim), which last until the next."""
    frames, draws = queries.shape[:2]
    tokens, count = held[0].shape[2], own[0].shape[2]
    scales = queries.shape[-1] ** -0.5, 1.0  # keys are fewer than scores
    fit = max(1, SCORES // (queries[0, 0, ..., 0].numel() * (tokens + count)))
    together = max(1, fit // draws)
    for first in range(0, frames, together):
        rows = slice(first, first + together)
        joined: list[Tensor] = []
        for begin in range(0, draws, fit):
            which = slice(begin, begin + fit)
            mine = [part[rows, which].transpose(2, 3).float() * by for part, by in zip(own, scales, strict=True)]
            if joined:
                joined = [part[:, : new.shape[1]] for part, new in zip(joined, mine, strict=True)]
                for part, new in zip(joined, mine, strict=True):
                    part[..., tokens : tokens + count, :] = new
            else:
                parts = zip(held, scales, mine, strict=True)
                joined = [_joined(part[rows].float() * by, new) for part, by, new in parts]
            yield (rows, which), joined[0], joined[1]


def _joined(held: Tensor, own: Tensor) -> Tensor:
    """For each draw, the memory and its own, and zeros up to a multiple of eight, because products with an odd row take
    up to 1.9 times as long."""
    shared = held[:, None].expand(-1, own.shape[1], -1, -1, -1)
    spare = own.new_zeros(()).expand(*own.shape[:3], _spare(held.shape[2] + own.shape[3]), own.shape[4])
    return torch.cat([shared, own, spare], 3)


def _spare(count: int) -> int:
    return -count % 8


def _bias(visible: Tensor) -> Tensor:
    """Of `_scores`: minus infinity for what must not be seen, else 0."""
    bias = torch.zeros_like(visible, dtype=torch.float32).masked_fill_(~visible, -torch.inf)
    return F.pad(bias, (0, _spare(visible.shape[2])), value=-torch.inf)[:, None, None, None]


def _scores(queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    """(frames, draws, kv_heads, heads per kv_head * actions, tokens + own + spare)."""
    scores = queries.float() @ keys.mT
    scores.unflatten(3, (-1, bias.shape[-2])).add_(bias)
    return scores


def _by_head(x: Tensor, key: Tensor) -> Tensor:
    """(frames, draws, actions, heads, n) -> (frames, draws, kv_heads, heads per kv_head * actions, n)."""
    return x.unflatten(3, (key.shape[3], -1)).permute(0, 1, 3, 4, 2, 5).flatten(3, 4)


def _put(rows: Tensor, into: Tensor, block: Block) -> None:
    """What `_by_head` made of a block, back to its place."""
    into[block].copy_(rows.unflatten(3, (-1, into.shape[2])).permute(0, 1, 4, 2, 3, 5).flatten(3, 4))
