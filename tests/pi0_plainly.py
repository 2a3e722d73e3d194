"""pi0 and pi0.5 without any saving: every camera and all padding computed and masked, every step from the beginning.

An oracle for the model's own savings, written from the papers' description with none of the model's code but its
parameters and its vision tower.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hotpolicy.runtime.model.pi0 import Pi0

Heads = list[tuple[Tensor, Tensor]]  # per layer K and V (batch, kv_heads, tokens, head_dim)


def actions(model: Pi0, inputs: tuple[Tensor, ...], state: Tensor, noise: Tensor) -> Tensor:
    """inputs as `Pi0.prefix` takes them."""
    memory, mask = read(model, *inputs)
    steps, x = model.config.steps, noise
    for index in range(steps):
        x = x - velocity(model, memory, mask, state, x, 1 - index / steps) / steps
    return x


def read(model: Pi0, images: Tensor, image_mask: Tensor, tokens: Tensor, token_mask: Tensor) -> tuple[Heads, Tensor]:
    pixels = images.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
    features = model.vision(pixels)
    if model.projector is not None:
        features = model.projector(features)
    seen = image_mask[:, :, None].expand(-1, -1, features.shape[1]).flatten(1)
    features = features.unflatten(0, images.shape[:2]).flatten(1, 2)
    x = torch.cat([features, model.embedding(tokens) * math.sqrt(model.config.language.width)], 1)
    mask = torch.cat([seen, token_mask], 1)
    positions = mask.cumsum(1) - 1
    memory = []
    for layer in model.language:  # the last one too, to its end
        y = _norm(layer.input_layernorm, x, None)[0]
        query, key, value = _project(layer, y, positions)
        memory.append((key, value))
        x = _finish(layer, x, _attend(layer, query, key, value, mask[:, None].expand(-1, x.shape[1], -1)), 1, None)
    return memory, mask


def velocity(model: Pi0, memory: Heads, mask: Tensor, state: Tensor, x_t: Tensor, t: float) -> Tensor:
    config = model.config
    x = model.action_in_proj(x_t)
    if config.step_embedding:
        x = x + model.step_embedding
    half = config.expert.width // 2
    period = 4e-3 * 1000 ** torch.linspace(0, 1, half, dtype=torch.float64)
    angle = 2 * math.pi * torch.tensor(t, dtype=torch.float32).double() / period
    time = torch.cat([angle.sin(), angle.cos()]).float().expand(*x.shape[:2], -1)
    if config.pi05:
        known = F.silu(model.time_mlp_out(F.silu(model.time_mlp_in(time))))
    else:
        known = None
        x = model.action_time_mlp_out(F.silu(model.action_time_mlp_in(torch.cat([x, time], -1))))
        x = torch.cat([model.state_proj(state)[:, None], x], 1)
    rows = x.shape[1]
    own = torch.ones(rows, rows, dtype=torch.bool)
    if not config.pi05:
        own[0, 1:] = False  # the state does not see the actions
    visible = torch.cat([mask[:, None].expand(-1, rows, -1), own.expand(len(x), -1, -1)], 2)
    positions = mask.sum(1, keepdim=True) + torch.arange(rows)
    for layer, (past_key, past_value) in zip(model.expert, memory, strict=True):
        y, gate = _norm(layer.input_layernorm, x, known)
        query, key, value = _project(layer, y, positions)
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
        x = _finish(layer, x, _attend(layer, query, key, value, visible), gate, known)
    return model.action_out_proj(_norm(model.expert_norm, x, known)[0][:, -config.horizon :])


def _norm(norm, x, known):
    unit = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    if known is None:
        return unit * (1 + norm.weight), 1
    scale, shift, gate = norm.dense(known).chunk(3, -1)
    return unit * (1 + scale) + shift, gate


def _project(layer, y, positions):
    attention = layer.self_attn
    size = attention.head_dim
    angle = positions[:, None, :, None] / 10000 ** (torch.arange(0, size, 2) / size)

    def heads(x):
        return x.unflatten(-1, (-1, size)).transpose(1, 2)

    def turn(x):
        left, right = x[..., : size // 2], x[..., size // 2 :]
        return torch.cat([left * angle.cos() - right * angle.sin(), right * angle.cos() + left * angle.sin()], -1)

    return turn(heads(attention.q_proj(y))), turn(heads(attention.k_proj(y))), heads(attention.v_proj(y))


def _attend(layer, query, key, value, visible):
    copies = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(copies, 1), value.repeat_interleave(copies, 1)
    scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
    scores = scores.masked_fill(~visible[:, None], -1e30)
    return layer.self_attn.o_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


def _finish(layer, x, attended, gate, known):
    x = x + attended * gate
    y, gate = _norm(layer.post_attention_layernorm, x, known)
    fed = F.gelu(layer.mlp.gate_proj(y), approximate="tanh") * layer.mlp.up_proj(y)
    return x + layer.mlp.down_proj(fed) * gate
