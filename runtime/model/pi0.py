"""pi0 and pi0.5: eyes, a vision-language prefix, and an action expert that flows noise into actions.

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
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hotpolicy.runtime.model.eyes import ConvStem, SiglipTower
from hotpolicy.runtime.model.gemma import AdaRMSNorm, GemmaLayer, Memory, Modulation, RMSNorm
from hotpolicy.runtime.model.guided import Guide, Promise
from hotpolicy.runtime.model.pi0_config import (
    GEMMA_2B,
    GEMMA_300M,
    NANO,
    PI0,
    PI05,
    SIGLIP,
    GemmaConfig,
    Pi0Config,
    VisionConfig,
)
from hotpolicy.runtime.model.vla import Prefix, Vla
from hotpolicy.runtime.model.weights import part

__all__ = [  # of the configuration's file too: whoever names a model finds its sizes beside it
    "GEMMA_2B", "GEMMA_300M", "NANO", "PI0", "PI05", "SIGLIP", "GemmaConfig", "Memory", "Moment", "Pi0", "Pi0Config",
    "Prefix", "Schedule", "VisionConfig",
]  # fmt: skip

# openpi's choice of what bf16 would harm; the heads stay in fp32 as well.
_IN_FP32 = re.compile(r"(input|post_attention)_layernorm\.|language_norm\.|vision\.((patch|position)_embedding|conv)")


class Moment(NamedTuple):
    """All that one time t says to the network; nothing else in it depends on t."""

    joined: Tensor | None  # pi0: time's half of action_time_mlp_in, (batch, draws, 1, width)
    norms: tuple[tuple[Modulation, Modulation], ...] = ()  # pi0.5: the two of each layer
    last: Modulation | None = None  # pi0.5: expert_norm's


@dataclass(frozen=True, slots=True)
class Schedule:
    """The moments of every step from noise to actions. Made of weights: it belongs to one version of them."""

    moments: tuple[Moment, ...]


class Pi0(Vla):
    """The whole policy network. `prefix` and `step` are apart because serving, export and tuning all cut there."""

    family = "pi0"
    config: Pi0Config

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

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Pi0:
        return cls(Pi0Config.from_dict(config))

    # ── prefix ────────────────────────────────────────────────────────────────────────────────────────────────────

    def prefix(
        self, images: Tensor, image_mask: Tensor, tokens: Tensor, token_mask: Tensor, *, packed: bool = True
    ) -> Prefix:
        """images (batch, cameras, height, width, 3) uint8, image_mask (batch, cameras) bool,
        tokens (batch, length) int64, token_mask (batch, length) bool.

        What is masked is not computed: absent cameras and padding cost nothing, and have no place in the result.
        With packed=False it is computed and masked; shapes then follow from shapes alone, as graph capture needs."""
        features = self.see(images, image_mask if packed else None)
        hidden, mask = self.embed(features, image_mask, tokens, token_mask)
        return self.read(*(_pack(hidden, mask) if packed else (hidden, mask)))[0]

    def see(self, images: Tensor, present: Tensor | None = None) -> Tensor:
        """(batch, cameras, height, width, 3) uint8 -> (batch, cameras, tokens, language width), zeros for cameras
        that are not `present` (batch, cameras) bool."""
        chosen = images.flatten(0, 1) if present is None else images[present]
        pixels = chosen.permute(0, 3, 1, 2).to(self.vision.position_embedding.dtype) / 127.5 - 1
        features = self.vision(pixels, self.layer)
        if self.projector is not None:
            features = self.projector(features)
        if present is None:
            return features.unflatten(0, images.shape[:2])
        return features.new_zeros(*present.shape, *features.shape[1:]).index_put((present,), features)

    def embed(self, features: Tensor, image_mask: Tensor, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Image tokens of all cameras, then words -> (batch, tokens, width) and their (batch, tokens) mask."""
        words = self.embedding(tokens) * math.sqrt(self.config.language.width)
        hidden = torch.cat([features.flatten(1, 2).to(words.dtype), words], 1)
        mask = torch.cat([image_mask.repeat_interleave(features.shape[2], 1), token_mask], 1)
        return hidden, mask

    def read(self, hidden: Tensor, mask: Tensor) -> tuple[Prefix, Tensor]:
        """Run the language layers; of the last one only K/V are needed. Also returns what entered that layer."""
        rotation = _rotation(mask.cumsum(1) - 1, self.config.language.head_dim)
        visible = mask[:, None, None, :]
        keys, values = [], []
        for index, layer in enumerate(_layers(self.language), start=1):
            last = index == len(self.language)
            key, value, after = self.layer(layer.read, hidden, rotation, visible, last)
            keys.append(key)
            values.append(value)
            hidden = hidden if last else after
        return Prefix(tuple(keys), tuple(values), mask), hidden

    # ── expert ────────────────────────────────────────────────────────────────────────────────────────────────────

    def velocity(self, prefix: Prefix, state: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """As `step` for several draws of noise and time that share one frame's prefix: x_t (batch, draws, horizon,
        action_dim), t (batch, draws). Draws lie side by side in the sequence and do not see each other."""
        return self.advance(self.remember(prefix, state, x_t.shape[1]), x_t, self.moment(t))

    def flow(
        self,
        prefix: Prefix,
        state: Tensor,
        noise: Tensor,
        schedule: Schedule | None = None,
        promise: Promise | None = None,
    ) -> Tensor:
        """Euler from t = 1 to 0: noise (batch, horizon, action_dim) -> normalised actions of the same shape, pulled
        towards the promise. A `schedule` made before saves what does not depend on the frame."""
        moments = (schedule or self.schedule()).moments
        guide = promise and Guide(promise, len(moments))
        memory, x = self.remember(prefix, state), noise[:, None]
        for step, moment in enumerate(moments):
            velocity = self.advance(memory, x, moment)
            if guide:
                velocity = guide.bend(velocity, x, step)
            x = x - velocity / len(moments)
        return x[:, 0]

    def remember(self, prefix: Prefix, state: Tensor, draws: int = 1) -> Memory:
        """What all steps of a chunk share. pi0's state token sees the prefix and itself alone, and knows no time: where
        there are several steps it is computed here, once; where there is one, beside the actions of every draw."""
        length, mask, first = self.config.horizon, prefix.mask, prefix.mask.sum(1, keepdim=True)
        keys, values, extra = prefix.keys, prefix.values, int(not self.config.pi05)
        if draws > 1 or torch.is_grad_enabled():
            order = torch.arange(extra + length, device=mask.device)
            own = torch.ones(len(order), len(order), dtype=torch.bool, device=mask.device)
            own[:extra, extra:] = False
            visible = torch.cat([mask[:, None].expand(-1, len(order), -1), own.expand(len(mask), -1, -1)], 2)
            token = self.state_proj(state).to(keys[0].dtype) if extra else None
            return Memory(keys, values, visible, self._turn(first + order.repeat(draws)), state=token)
        if extra:
            keys, values = self._stand(prefix, state, self._turn(first))
        return Memory(
            tuple(F.pad(key, (0, 0, 0, length)) for key in keys),
            tuple(F.pad(value, (0, 0, 0, length)) for value in values),
            F.pad(mask, (0, extra + length), value=True)[:, None],
            self._turn(first + extra + torch.arange(length, device=mask.device)),
            length,
        )

    def _turn(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return _rotation(positions, self.config.expert.head_dim)

    def _stand(
        self, prefix: Prefix, state: Tensor, rotation: tuple[Tensor, Tensor]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The state token's way through the expert: the prefix's keys and values with its own at the end."""
        x = self.state_proj(state)[:, None].to(prefix.keys[0].dtype)
        visible = F.pad(prefix.mask, (0, 1), value=True)[:, None, None]
        keys, values = [], []
        for layer, prefix_key, prefix_value in zip(_layers(self.expert), prefix.keys, prefix.values, strict=True):
            y, _ = layer.input_layernorm(x)
            key, value = layer.self_attn.key_value(y, rotation)
            keys.append(torch.cat([prefix_key, key], 2))
            values.append(torch.cat([prefix_value, value], 2))
            if len(keys) < len(self.expert):
                query = layer.self_attn.query(y, rotation)
                x = layer.finish(x, layer.self_attn.attend(query, keys[-1], values[-1], visible))
        return tuple(keys), tuple(values)

    def advance(self, memory: Memory, x_t: Tensor, moment: Moment) -> Tensor:
        """Velocity at x_t (batch, draws, horizon, action_dim)."""
        x = self._enter(x_t, moment).to(memory.keys[0].dtype)
        if memory.state is not None:
            x = torch.cat([memory.state[:, None, None].expand(-1, x.shape[1], 1, -1), x], 2)
        norms = moment.norms or ((None, None),) * len(self.expert)
        for index, (layer, times) in enumerate(zip(_layers(self.expert), norms, strict=True)):
            x = self.layer(layer.act, x, memory, index, *times)
        x, _ = self.expert_norm(x[:, :, -x_t.shape[2] :], moment.last)
        return self.action_out_proj(x.to(self.action_out_proj.weight.dtype))

    def _enter(self, x_t: Tensor, moment: Moment) -> Tensor:
        """Noisy actions -> tokens (batch, draws, horizon, expert width)."""
        actions = self.action_in_proj(x_t)
        if self.config.step_embedding:
            actions = actions + self.step_embedding
        if moment.joined is None:
            return actions
        of_action = self.action_time_mlp_in.weight[:, : actions.shape[-1]]  # it takes [action | time]
        return self.action_time_mlp_out(F.silu(F.linear(actions, of_action) + moment.joined))

    def moment(self, t: Tensor) -> Moment:
        """What every layer needs of the times t (batch, draws)."""
        width = self.config.expert.width
        time = _time_embedding(t, width)[:, :, None].to(self.action_in_proj.weight.dtype)
        if not self.config.pi05:
            of_time = self.action_time_mlp_in.weight[:, width:]
            return Moment(F.linear(time, of_time, self.action_time_mlp_in.bias))
        cond = F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(time))))
        norms = tuple(
            (_modulation(layer.input_layernorm, cond), _modulation(layer.post_attention_layernorm, cond))
            for layer in _layers(self.expert)
        )
        return Moment(None, norms, _modulation(self.expert_norm, cond))

    @torch.no_grad()
    def schedule(self, steps: int | None = None) -> Schedule:
        """Everything of time, for all steps: to be made once per version of the weights. Training does not use it:
        there the weights move."""
        count, device = steps or self.config.steps, self.action_in_proj.weight.device
        times = (torch.full((1, 1), 1 - index / count, device=device) for index in range(count))
        return Schedule(tuple(self.moment(t) for t in times))

    def groups(self) -> dict[str, str]:
        """Parameter name -> group: vision, projector, embedding, language.<layer>, expert.<layer> or heads."""
        return {name: part(name) for name, _ in self.named_parameters()}

    def idle(self) -> frozenset[str]:
        """Only K/V leave the last language layer."""
        last = f"language.{self.config.language.layers - 1}"
        parts = ("self_attn.q_proj", "self_attn.o_proj", "post_attention_layernorm", "mlp")
        unused = ("language_norm.", *(f"{last}.{part}." for part in parts))
        return frozenset(name for name, _ in self.named_parameters() if name.startswith(unused))

    def precise(self) -> frozenset[str]:
        """Gemma's norms with all that modulates them, the heads, and where pixels come in."""
        return frozenset(name for name, group in self.groups().items() if group == "heads" or _IN_FP32.search(name))

    def pace(self, group: str) -> float:
        # Embeddings are multiplied by sqrt(width) on their way in: without this they would learn as much faster.
        return 1 / math.sqrt(self.config.language.width) if group == "embedding" else 1.0


def _layers(modules: nn.ModuleList) -> list[GemmaLayer]:
    return list(modules)  # type: ignore[arg-type]  # a ModuleList forgets what it holds


def _modulation(norm: nn.Module, cond: Tensor) -> Modulation:
    assert isinstance(norm, AdaRMSNorm)
    return Modulation(*norm.dense(cond).float().chunk(3, dim=-1))


def _pack(hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Leave out what is masked, row by row: what remains keeps its order, and so its position and its result."""
    longest = max(1, int(mask.sum(1).max()))
    if longest == mask.shape[1]:
        return hidden, mask
    order = mask.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :longest]
    return hidden.gather(1, order[..., None].expand(-1, -1, hidden.shape[2])), mask.gather(1, order)


def _rotation(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin of rotary position (theta 10000), (batch, 1, tokens, head_dim / 2), in fp32."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angle = positions[:, None, :, None].float() / 10000.0**exponent
    return angle.cos(), angle.sin()


def _time_embedding(t: Tensor, width: int) -> Tensor:
    """(...) -> (..., width): sin then cos over periods from 4e-3 to 4, computed in fp64 as openpi does."""
    fraction = torch.linspace(0, 1, width // 2, dtype=torch.float64, device=t.device)
    period = 4e-3 * (4.0 / 4e-3) ** fraction
    angle = t.double()[..., None] * (2 * math.pi / period)
    return torch.cat([angle.sin(), angle.cos()], -1).to(torch.float32)
