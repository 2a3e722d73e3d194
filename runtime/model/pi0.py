"""pi0 and pi0.5 in one file: eyes, a vision-language prefix, and an action expert that flows noise into actions.

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
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hotpolicy.runtime.model.guided import Guide, Promise
from hotpolicy.runtime.model.vla import Prefix, Vla
from hotpolicy.runtime.model.weights import part

# openpi's choice of what bf16 would harm; the heads stay in fp32 as well.
_IN_FP32 = re.compile(r"(input|post_attention)_layernorm\.|language_norm\.|vision\.((patch|position)_embedding|conv)")


@dataclass(frozen=True, slots=True)
class VisionConfig:
    kind: str  # "siglip": transformer over patches; "stem": three convolutions, one token per 8x8 pixels
    image_size: int  # pixels, square
    width: int
    layers: int = 0
    heads: int = 0
    mlp: int = 0
    patch: int = 14  # pixels
    channels: tuple[int, ...] = (32, 64)  # of a stem's first two convolutions

    @property
    def tokens(self) -> int:
        side = self.image_size // (8 if self.kind == "stem" else self.patch)
        return side * side


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


class SiglipLayer(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.heads = config.heads
        self.layer_norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)
        self.fc1 = nn.Linear(config.width, config.mlp)
        self.fc2 = nn.Linear(config.mlp, config.width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer_norm1(x)
        split = [p(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)]
        x = x + self.out_proj(F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.layer_norm2(x)), approximate="tanh"))


class SiglipTower(nn.Module):
    """(batch, 3, size, size) in [-1, 1] -> (batch, tokens, width). `run` runs a layer: see `Vla.layer`."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch, config.patch)
        self.position_embedding = nn.Parameter(torch.randn(config.tokens, config.width) * 0.02)
        self.layers = nn.ModuleList(SiglipLayer(config) for _ in range(config.layers))
        self.post_layernorm = nn.LayerNorm(config.width, eps=1e-6)

    def forward(self, image: Tensor, run: Callable[..., Tensor] = nn.Module.__call__) -> Tensor:
        x = self.patch_embedding(image).flatten(2).transpose(1, 2) + self.position_embedding
        x = x.to(self.post_layernorm.weight.dtype)
        for layer in self.layers:
            x = run(layer, x)
        return self.post_layernorm(x)


class ConvStem(nn.Module):
    """The nano preset's eyes: three convolutions, each halving (the first quartering in area) the picture."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        first, second = config.channels
        self.conv1 = nn.Conv2d(3, first, 4, 2, 1)
        self.conv2 = nn.Conv2d(first, second, 3, 2, 1)
        self.conv3 = nn.Conv2d(second, config.width, 3, 2, 1)
        waves = _grid_waves(config.tokens)
        start = F.pad(waves, (0, config.width - waves.shape[1])) * 0.5
        self.position_embedding = nn.Parameter(start + torch.randn(config.tokens, config.width) * 0.02)

    def forward(self, image: Tensor, run: Callable[..., Tensor] = nn.Module.__call__) -> Tensor:
        x = F.relu(self.conv1(image.contiguous(memory_format=torch.channels_last)))
        x = self.conv3(F.relu(self.conv2(x)))
        return x.flatten(2).transpose(1, 2) + self.position_embedding


class Memory(NamedTuple):
    """All that a chunk's actions attend to besides each other, the same in every step: the prefix and pi0's state."""

    keys: tuple[Tensor, ...]  # per layer (batch, kv_heads, tokens + room, head_dim)
    values: tuple[Tensor, ...]
    visible: Tensor  # (batch, 1, actions or 1, tokens + actions) bool: True may be seen
    rotation: tuple[Tensor, Tensor]  # of the actions
    room: int  # places at the end that every step writes its actions into; 0 where gradients forbid that


class Modulation(NamedTuple):
    """What time does to one of pi0.5's norms, (batch, draws, 1, width) each, in fp32."""

    scale: Tensor
    shift: Tensor
    gate: Tensor  # of the residual


class Moment(NamedTuple):
    """All that one time t says to the network; nothing else in it depends on t."""

    joined: Tensor | None  # pi0: time's half of action_time_mlp_in, (batch, draws, 1, width)
    norms: tuple[tuple[Modulation, Modulation], ...] = ()  # pi0.5: the two of each layer
    last: Modulation | None = None  # pi0.5: expert_norm's


@dataclass(frozen=True, slots=True)
class Schedule:
    """The moments of every step from noise to actions. Made of weights: it belongs to one version of them."""

    moments: tuple[Moment, ...]


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

    def act(
        self,
        x: Tensor,
        held: tuple[Tensor, Tensor],
        memory: Memory,
        before: Modulation | None,
        after: Modulation | None,
    ) -> Tensor:
        """The layer on a chunk's actions (batch, draws, horizon, width), which see what is `held` and each other."""
        y, gate = self.input_layernorm(x, before)
        y = y.flatten(1, 2)
        query = self.self_attn.query(y, memory.rotation)
        key, value = map(_joined, held, self.self_attn.key_value(y, memory.rotation), (memory.room,) * 2)
        attended = self.self_attn.attend(query, key, value, memory.visible)
        return self.finish(x, attended.view_as(x), gate, after)

    def finish(self, x: Tensor, attended: Tensor, gate: Tensor | None = None, time: Modulation | None = None) -> Tensor:
        """The residual around attention, then the feed-forward half."""
        x = _residual(x, attended, gate)
        y, gate = self.post_attention_layernorm(x, time)
        return _residual(x, self.mlp(y), gate)


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
        """What all steps of a chunk share. pi0's state token sees the prefix and itself alone, and knows no time: so
        it is computed here, and its K/V join the prefix's."""
        keys, values, mask = prefix.keys, prefix.values, prefix.mask
        places = mask.sum(1, keepdim=True)
        if not self.config.pi05:
            mask = F.pad(mask, (0, 1), value=True)
            keys, values = self._stand(prefix, state, _rotation(places, self.config.expert.head_dim), mask)
            places = places + 1
        length = self.config.horizon
        own = torch.ones(length, length, dtype=torch.bool, device=mask.device)
        if draws > 1:
            seen = mask[:, None].expand(-1, draws * length, -1)
            own = torch.block_diag(*[own] * draws).expand(mask.shape[0], -1, -1)
        else:  # every action sees all there is: one row of the mask serves all
            seen, own = mask[:, None], own[:1].expand(mask.shape[0], -1, -1)
        room = 0 if torch.is_grad_enabled() else draws * length
        return Memory(
            tuple(F.pad(key, (0, 0, 0, room)) for key in keys),
            tuple(F.pad(value, (0, 0, 0, room)) for value in values),
            torch.cat([seen, own], 2)[:, None],
            _rotation(places + torch.arange(length, device=mask.device).repeat(draws), self.config.expert.head_dim),
            room,
        )

    def _stand(
        self, prefix: Prefix, state: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The state token's way through the expert: the prefix's keys and values with its own at the end."""
        x = self.state_proj(state)[:, None].to(prefix.keys[0].dtype)
        keys, values = [], []
        for layer, prefix_key, prefix_value in zip(_layers(self.expert), prefix.keys, prefix.values, strict=True):
            y, _ = layer.input_layernorm(x)
            key, value = layer.self_attn.key_value(y, rotation)
            keys.append(torch.cat([prefix_key, key], 2))
            values.append(torch.cat([prefix_value, value], 2))
            if len(keys) < len(self.expert):
                query = layer.self_attn.query(y, rotation)
                x = layer.finish(x, layer.self_attn.attend(query, keys[-1], values[-1], mask[:, None, None]))
        return tuple(keys), tuple(values)

    def advance(self, memory: Memory, x_t: Tensor, moment: Moment) -> Tensor:
        """Velocity at x_t (batch, draws, horizon, action_dim)."""
        x = self._enter(x_t, moment).to(memory.keys[0].dtype)
        norms = moment.norms or ((None, None),) * len(self.expert)
        for layer, held, (before, after) in zip(
            _layers(self.expert), zip(memory.keys, memory.values, strict=True), norms, strict=True
        ):
            x = self.layer(layer.act, x, held, memory, before, after)
        x, _ = self.expert_norm(x, moment.last)
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


def _joined(held: Tensor, new: Tensor, room: int) -> Tensor:
    """The keys or values of a memory and of the actions."""
    if not room:
        return torch.cat([held, new], 2)
    held[:, :, -room:] = new
    return held


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
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)
    return torch.cat(turned, -1).to(x.dtype)


def _time_embedding(t: Tensor, width: int) -> Tensor:
    """(...) -> (..., width): sin then cos over periods from 4e-3 to 4, computed in fp64 as openpi does."""
    fraction = torch.linspace(0, 1, width // 2, dtype=torch.float64, device=t.device)
    period = 4e-3 * (4.0 / 4e-3) ** fraction
    angle = t.double()[..., None] * (2 * math.pi / period)
    return torch.cat([angle.sin(), angle.cos()], -1).to(torch.float32)


def _grid_waves(tokens: int) -> Tensor:
    """(tokens, 16): sin and cos of the cell's place in the picture at four scales, a start for positions."""
    line = torch.linspace(-1, 1, math.isqrt(tokens))
    down, right = torch.meshgrid(line, line, indexing="ij")
    place = torch.stack([right, down], -1).view(tokens, 2)
    return torch.cat([wave(place * math.pi * k) for k in (0.5, 1, 2, 4) for wave in (torch.sin, torch.cos)], -1)
