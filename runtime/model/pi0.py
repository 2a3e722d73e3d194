"""pi0 and pi0.5 in one file: a vision-language prefix, and an action expert that flows noise into actions.

    images ─ vision ─ projector ─┐
                                 ├─ language layers, bidirectional ──> K/V of every layer ("prefix", once per frame)
    instruction ─ embedding ─────┘                                       │
    state, noisy actions, time ──── expert layers, attending to it ──────┴──> velocity ("step", ten times per chunk)

`Pi0Config` spans the published models and the nano preset: a SigLIP tower or a small convolutional stem, any
width, depth and number of key/value heads. Conventions are openpi's: t = 1 is noise, t = 0 is data,
x_t = t * noise + (1 - t) * actions, and the velocity to learn is noise - actions (Black et al. 2024,
arXiv 2410.24164; pi0.5: arXiv 2504.16054). Images, tokens and states arrive normalised; this file knows
nothing of robots, prompts or files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hotpolicy.runtime.model.vision import ConvStem, SiglipTower, VisionConfig


@dataclass(frozen=True, slots=True)
class GemmaConfig:
    width: int
    layers: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class Pi0Config:
    vision: VisionConfig
    language: GemmaConfig
    expert: GemmaConfig  # same layers, heads, kv_heads and head_dim as language: they share one attention
    vocabulary: int
    action_dim: int  # joints, or the width they are padded to
    horizon: int  # actions per chunk
    steps: int = 10  # Euler steps from noise to actions
    pi05: bool = False  # time through adaptive RMSNorm, state in the prompt
    step_embedding: bool = False  # a learned vector per action step; pi0 tells the steps apart by rotary position alone

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Pi0Config:
        """Raises TypeError or KeyError for fields that are unknown or missing."""
        known = {field.name for field in fields(cls)}
        if unknown := set(data) - known:
            raise TypeError(f"unknown fields {sorted(unknown)}")
        vision = dict(data["vision"])
        vision["channels"] = tuple(vision.get("channels", (32, 64)))
        return cls(
            **{
                **data,
                "vision": VisionConfig(**vision),
                "language": GemmaConfig(**data["language"]),
                "expert": GemmaConfig(**data["expert"]),
            }
        )


GEMMA_2B = GemmaConfig(width=2048, layers=18, mlp=16384, heads=8, kv_heads=1, head_dim=256)
GEMMA_300M = GemmaConfig(width=1024, layers=18, mlp=4096, heads=8, kv_heads=1, head_dim=256)
SIGLIP = VisionConfig("siglip", image_size=224, width=1152, layers=27, heads=16, mlp=4304)

PI0 = Pi0Config(SIGLIP, GEMMA_2B, GEMMA_300M, vocabulary=257152, action_dim=32, horizon=50)
PI05 = Pi0Config(SIGLIP, GEMMA_2B, GEMMA_300M, vocabulary=257152, action_dim=32, horizon=50, pi05=True)
NANO = Pi0Config(
    vision=VisionConfig("stem", image_size=64, width=128),
    language=GemmaConfig(width=128, layers=4, mlp=256, heads=4, kv_heads=1, head_dim=32),
    expert=GemmaConfig(width=96, layers=4, mlp=288, heads=4, kv_heads=1, head_dim=32),
    vocabulary=512,
    action_dim=6,
    horizon=8,
    steps=8,
    step_embedding=True,
)


class Prefix(NamedTuple):
    """What the expert needs of one frame. It depends on images and instruction only, so it can be cached."""

    keys: tuple[Tensor, ...]  # per layer (batch, kv_heads, tokens, head_dim)
    values: tuple[Tensor, ...]
    mask: Tensor  # (batch, tokens) bool; False for padding and absent cameras


class RMSNorm(nn.Module):
    """Gemma's: x / rms(x) * (1 + weight), computed in fp32."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return (_unit_rms(x) * (1 + self.weight.float())).to(x.dtype), None


class AdaRMSNorm(nn.Module):
    """pi0.5's: scale, shift and a gate for the residual, all made from the time embedding."""

    def __init__(self, width: int):
        super().__init__()
        self.dense = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        assert cond is not None
        scale, shift, gate = self.dense(cond).chunk(3, dim=-1)
        return (_unit_rms(x) * (1 + scale.float()) + shift.float()).to(x.dtype), gate.to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: GemmaConfig):
        super().__init__()
        inner, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.head_dim = config.head_dim
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
        shared = query.shape[1] != key.shape[1]  # several query heads read one key/value head, which is never copied
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=shared)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

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

    def finish(self, x: Tensor, attended: Tensor, gate: Tensor | None, cond: Tensor | None) -> Tensor:
        """The residual around attention, then the feed-forward half."""
        x = _residual(x, attended, gate)
        y, gate = self.post_attention_layernorm(x, cond)
        return _residual(x, self.mlp(y), gate)


class Pi0(nn.Module):
    """The whole policy network. `prefix` and `step` are apart because serving, export and tuning all cut there."""

    def __init__(self, config: Pi0Config):
        super().__init__()
        language, expert = config.language, config.expert
        shared = ("layers", "heads", "kv_heads", "head_dim")
        assert all(getattr(language, name) == getattr(expert, name) for name in shared), "expert and language differ"
        self.config = config
        self.vision = (ConvStem if config.vision.kind == "stem" else SiglipTower)(config.vision)
        # A stem already speaks the language model's width.
        self.projector = nn.Linear(config.vision.width, language.width) if config.vision.kind == "siglip" else None
        self.embedding = nn.Embedding(config.vocabulary, language.width)
        nn.init.normal_(self.embedding.weight, std=0.5 / math.sqrt(language.width))
        self.language = nn.ModuleList(GemmaLayer(language) for _ in range(language.layers))
        self.language_norm = RMSNorm(language.width)  # in every checkpoint, never used: only K/V leave the last layer
        self.expert = nn.ModuleList(GemmaLayer(expert, adaptive=config.pi05) for _ in range(expert.layers))
        self.expert_norm = (AdaRMSNorm if config.pi05 else RMSNorm)(expert.width)
        self.action_in_proj = nn.Linear(config.action_dim, expert.width)
        self.action_out_proj = nn.Linear(expert.width, config.action_dim)
        if config.pi05:
            self.time_mlp_in = nn.Linear(expert.width, expert.width)
            self.time_mlp_out = nn.Linear(expert.width, expert.width)
        else:
            self.state_proj = nn.Linear(config.action_dim, expert.width)
            self.action_time_mlp_in = nn.Linear(2 * expert.width, expert.width)
            self.action_time_mlp_out = nn.Linear(expert.width, expert.width)
        if config.step_embedding:
            self.step_embedding = nn.Parameter(torch.randn(config.horizon, expert.width) * 0.1)

    # ── prefix ────────────────────────────────────────────────────────────────────────────────────────────────────

    def prefix(self, images: Tensor, image_mask: Tensor, tokens: Tensor, token_mask: Tensor) -> Prefix:
        """images (batch, cameras, height, width, 3) uint8, image_mask (batch, cameras) bool,
        tokens (batch, length) int64, token_mask (batch, length) bool."""
        hidden, mask = self.embed(self.see(images), image_mask, tokens, token_mask)
        return self.read(hidden, mask)[0]

    def see(self, images: Tensor) -> Tensor:
        """(batch, cameras, height, width, 3) uint8 -> (batch, cameras, tokens, language width)."""
        flat = images.flatten(0, 1).permute(0, 3, 1, 2).to(self.embedding.weight.dtype) / 127.5 - 1
        features = self.vision(flat)
        if self.projector is not None:
            features = self.projector(features)
        return features.unflatten(0, images.shape[:2])

    def embed(self, features: Tensor, image_mask: Tensor, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Image tokens of all cameras, then words -> (batch, tokens, width) and their (batch, tokens) mask."""
        words = self.embedding(tokens) * math.sqrt(self.config.language.width)
        hidden = torch.cat([features.flatten(1, 2), words], 1)
        mask = torch.cat([image_mask.repeat_interleave(features.shape[2], 1), token_mask], 1)
        return hidden, mask

    def read(self, hidden: Tensor, mask: Tensor) -> tuple[Prefix, Tensor]:
        """Run the language layers; of the last one only K/V are needed. Also returns what entered that layer."""
        rotation = _rotation(mask.cumsum(1) - 1, self.config.language.head_dim)
        visible = mask[:, None, None, :]
        keys, values = [], []
        for layer in _layers(self.language):
            x, _ = layer.input_layernorm(hidden)
            key, value = layer.self_attn.key_value(x, rotation)
            keys.append(key)
            values.append(value)
            if len(keys) < len(self.language):
                attended = layer.self_attn.attend(layer.self_attn.query(x, rotation), key, value, visible)
                hidden = layer.finish(hidden, attended, None, None)
        return Prefix(tuple(keys), tuple(values), mask), hidden

    # ── expert ────────────────────────────────────────────────────────────────────────────────────────────────────

    def step(self, prefix: Prefix, state: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Velocity at x_t (batch, horizon, action_dim) and time t (batch,); state (batch, action_dim)."""
        return self.velocity(prefix, state, x_t[:, None], t[:, None])[:, 0]

    def velocity(self, prefix: Prefix, state: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """As `step` for several draws of noise and time that share one frame's prefix: x_t (batch, draws, horizon,
        action_dim), t (batch, draws). Draws lie side by side in the sequence and do not see each other."""
        suffix, cond = self._suffix(state, x_t, t)
        draws, length = suffix.shape[1:3]
        x = suffix.flatten(1, 2)
        rotation = _rotation(
            prefix.mask.sum(1, keepdim=True) + torch.arange(length, device=x.device).repeat(draws),
            self.config.expert.head_dim,
        )
        visible = self._visible(prefix.mask, draws, length)
        for layer, prefix_key, prefix_value in zip(_layers(self.expert), prefix.keys, prefix.values, strict=True):
            y, gate = layer.input_layernorm(x, cond)
            key, value = layer.self_attn.key_value(y, rotation)
            attended = layer.self_attn.attend(
                layer.self_attn.query(y, rotation),
                torch.cat([prefix_key, key], 2),
                torch.cat([prefix_value, value], 2),
                visible,
            )
            x = layer.finish(x, attended, gate, cond)
        x, _ = self.expert_norm(x, cond)
        return self.action_out_proj(x.unflatten(1, (draws, length))[:, :, -self.config.horizon :])

    def _suffix(self, state: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """-> tokens (batch, draws, length, width) and pi0.5's condition (batch, draws * length, width)."""
        actions = self.action_in_proj(x_t)
        if self.config.step_embedding:
            actions = actions + self.step_embedding
        time = _time_embedding(t, self.config.expert.width).to(actions.dtype)[:, :, None]
        if self.config.pi05:
            cond = F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(time))))
            return actions, cond.expand(-1, -1, actions.shape[2], -1).flatten(1, 2)
        joined = torch.cat([actions, time.expand_as(actions)], -1)
        actions = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(joined)))
        standing = self.state_proj(state)[:, None, None].expand(-1, actions.shape[1], 1, -1)
        return torch.cat([standing, actions], 2), None

    def _visible(self, prefix_mask: Tensor, draws: int, length: int) -> Tensor:
        """(batch, 1, draws * length, prefix + draws * length) bool. Actions see the prefix, the state and each
        other; the state token sees the prefix and itself."""
        block = torch.ones(length, length, dtype=torch.bool, device=prefix_mask.device)
        if not self.config.pi05:
            block[0, 1:] = False
        own = torch.block_diag(*[block] * draws) if draws > 1 else block
        rows = draws * length
        return torch.cat(
            [prefix_mask[:, None].expand(-1, rows, -1), own[None].expand(prefix_mask.shape[0], -1, -1)], 2
        )[:, None]

    def flow(self, prefix: Prefix, state: Tensor, noise: Tensor, steps: int | None = None) -> Tensor:
        """Euler from t = 1 to 0: noise (batch, horizon, action_dim) -> normalised actions of the same shape."""
        count = steps or self.config.steps
        x = noise
        for index in range(count):
            time = torch.full(noise.shape[:1], 1 - index / count, dtype=noise.dtype, device=noise.device)
            x = x - self.step(prefix, state, x, time) / count
        return x

    def flow_loss(self, prefix: Prefix, state: Tensor, actions: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Squared error of the velocity, (batch, draws): actions (batch, horizon, action_dim),
        noise (batch, draws, horizon, action_dim), t (batch, draws)."""
        at = t[..., None, None]
        target = noise - actions[:, None]
        predicted = self.velocity(prefix, state, at * noise + (1 - at) * actions[:, None], t)
        return (predicted - target).pow(2).mean((2, 3))

    def groups(self) -> dict[str, str]:
        """Parameter name -> group: vision, projector, embedding, language.<layer>, expert.<layer> or heads."""
        return {name: _group(name) for name, _ in self.named_parameters()}


def sample_times(shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
    """Training times: Beta(1.5, 1) * 0.999 + 0.001, mostly near noise, as in pi0. Beta(a, 1) is uniform ** (1/a)."""
    return torch.rand(shape, generator=generator).pow(1 / 1.5) * 0.999 + 0.001


def _layers(modules: nn.ModuleList) -> list[GemmaLayer]:
    return list(modules)  # type: ignore[arg-type]  # a ModuleList forgets what it holds


def _group(name: str) -> str:
    head, _, rest = name.partition(".")
    if head in ("language", "expert"):
        return f"{head}.{rest.partition('.')[0]}"
    if head == "language_norm":
        return "language"
    return head if head in ("vision", "projector", "embedding") else "heads"


def _unit_rms(x: Tensor) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def _residual(x: Tensor, branch: Tensor, gate: Tensor | None) -> Tensor:
    return x + branch if gate is None else x + branch * gate


def _rotation(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin of rotary position (theta 10000), (batch, 1, tokens, head_dim / 2), in fp32."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angle = positions[:, None, :, None].float() / 10000.0**exponent
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Half-split, as in Gemma: the first half of a head turns against the second."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def _time_embedding(t: Tensor, width: int) -> Tensor:
    """(...) -> (..., width): sin then cos over periods from 4e-3 to 4, computed in fp64 as openpi does."""
    fraction = torch.linspace(0, 1, width // 2, dtype=torch.float64, device=t.device)
    period = 4e-3 * (4.0 / 4e-3) ** fraction
    angle = t.double()[..., None] * (2 * math.pi / period)
    return torch.cat([angle.sin(), angle.cos()], -1).to(torch.float32)
