"""Gemma's layers as pi0 uses them: on a prefix that is read once, and on actions that attend to what was read."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hotpolicy.runtime.model.draws import DrawnAttention
from hotpolicy.runtime.model.pi0_config import GemmaConfig


class Memory(NamedTuple):
    """All that a chunk's actions attend to besides each other, the same in every step: the prefix and pi0's state."""

    keys: tuple[Tensor, ...]  # per layer (batch, kv_heads, tokens + room, head_dim)
    values: tuple[Tensor, ...]
    visible: Tensor  # (batch, rows, tokens + rows) bool, with room (batch, 1, tokens + room): True may be seen
    rotation: tuple[Tensor, Tensor]  # of the rows
    room: int = 0  # places at the end that every step writes its actions into; none where there are draws or gradients
    state: Tensor | None = None  # pi0's state token, where its keys and values are not in `keys` and `values`


class Modulation(NamedTuple):
    """What time does to one of pi0.5's norms, (batch, draws, 1, width) each, in fp32."""

    scale: Tensor
    shift: Tensor
    gate: Tensor  # of the residual


class RMSNorm(nn.Module):
    """Gemma's: x / rms(x) * (1 + weight), computed in fp32."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, time: None = None) -> tuple[Tensor, Tensor | None]:
        return (_unit_rms(x) * (1 + self.weight.float())).to(x.dtype), None


class AdaRMSNorm(nn.Module):
    """pi0.5's: scale, shift and a gate for the residual, all made from the time embedding."""

    def __init__(self, width: int):
        super().__init__()
        self.dense = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def forward(self, x: Tensor, time: Modulation) -> tuple[Tensor, Tensor | None]:
        return (_unit_rms(x) * (1 + time.scale) + time.shift).to(x.dtype), time.gate.to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: GemmaConfig):
        super().__init__()
        inner, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.shared = config.heads != config.kv_heads  # several query heads read one key/value head, never copied
        self.q_proj = nn.Linear(config.width, inner, bias=False)
        self.k_proj = nn.Linear(config.width, kv, bias=False)
        self.v_proj = nn.Linear(config.width, kv, bias=False)
        self.o_proj = nn.Linear(inner, config.width, bias=False)

    def query(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        return _rotate(self._heads(self.q_proj(x)), rotation)

    def key_value(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return _rotate(self._heads(self.k_proj(x)), rotation), self._heads(self.v_proj(x))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """mask (batch, 1, queries or 1, keys) bool: True may be seen."""
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=self.shared)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def recall(self, y: Tensor, memory: Memory, layer: int) -> Tensor:
        """Rows (batch, draws, rows, width) attend to the memory of this layer, and each to its own draw."""
        x = y.flatten(1, 2)
        query, new = self.query(x, memory.rotation), self.key_value(x, memory.rotation)
        held = memory.keys[layer], memory.values[layer]
        if memory.room:
            for place, own in zip(held, new, strict=True):
                place[:, :, -memory.room :] = own
            return self.attend(query, *held, memory.visible[:, None]).view_as(y)
        query, key, value = (part.transpose(1, 2).unflatten(1, y.shape[1:3]) for part in (query, *new))
        mixed: Tensor = DrawnAttention.apply(query, *held, key, value, memory.visible)
        return self.o_proj(mixed.flatten(3))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class FeedForward(nn.Module):
    def __init__(self, config: GemmaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp, bias=False)
        self.down_proj = nn.Linear(config.mlp, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class GemmaLayer(nn.Module):
    def __init__(self, config: GemmaConfig, adaptive: bool = False):
        super().__init__()
        norm = AdaRMSNorm if adaptive else RMSNorm
        self.input_layernorm = norm(config.width)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = norm(config.width)
        self.mlp = FeedForward(config)

    def read(
        self, hidden: Tensor, rotation: tuple[Tensor, Tensor], visible: Tensor, last: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The layer on a prefix: its keys, its values, and what the next layer reads (of the last one, its input)."""
        x, _ = self.input_layernorm(hidden)
        key, value = self.self_attn.key_value(x, rotation)
        if last:
            return key, value, hidden
        attended = self.self_attn.attend(self.self_attn.query(x, rotation), key, value, visible)
        return key, value, self.finish(hidden, attended)

    def act(self, x: Tensor, memory: Memory, index: int, before: Modulation | None, after: Modulation | None) -> Tensor:
        """The layer, `index` of its stack, on a chunk's actions (batch, draws, rows, width), which see what is
        remembered and each other."""
        y, gate = self.input_layernorm(x, before)
        return self.finish(x, self.self_attn.recall(y, memory, index), gate, after)

    def finish(self, x: Tensor, attended: Tensor, gate: Tensor | None = None, time: Modulation | None = None) -> Tensor:
        """The residual around attention, then the feed-forward half."""
        x = _residual(x, attended, gate)
        y, gate = self.post_attention_layernorm(x, time)
        return _residual(x, self.mlp(y), gate)


def _unit_rms(x: Tensor) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def _residual(x: Tensor, branch: Tensor, gate: Tensor | None) -> Tensor:
    return x + branch if gate is None else x + branch * gate


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Half-split, as in Gemma: the first half of a head turns against the second."""
    cos, sin = rotation
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)
    return torch.cat(turned, -1).to(x.dtype)
