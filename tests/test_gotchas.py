"""Every known way to get pi0 or pi0.5 subtly wrong, planted on purpose: the comparison with LeRobot notices each.

A planted fault changes the model's weights, replaces one function of it, or both. What is asked is that some number
in some golden file then lies far outside the tolerance that `test_parity.py` allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_pi0 import FAMILIES, Golden, fill, gaps, load
from test_parity import TOLERANCE
from torch import Tensor

from hotpolicy.runtime.model import eyes, gemma, pi0
from hotpolicy.runtime.model.pi0 import Memory, Moment, Pi0, Prefix, Schedule

FAR = 5 * TOLERANCE


@dataclass(frozen=True)
class Place:
    """Where a fault is planted."""

    patch: pytest.MonkeyPatch
    model: Pi0
    golden: Golden

    def replace(self, owner: object, name: str, make: Callable[[Any], Callable[..., Any]]) -> None:
        """`make` is given what was there and returns what comes in its place."""
        self.patch.setattr(owner, name, make(getattr(owner, name)))

    @property
    def padded(self) -> int:
        """Places in a prefix from which nothing is left out."""
        return self.golden["image_mask"].shape[1] * self.model.config.vision.tokens + self.golden["tokens"].shape[1]


# ── prefix ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def image_features_divided_by_sqrt_width(at: Place) -> None:
    width = at.model.config.language.width
    at.replace(Pi0, "see", lambda see: lambda *given: see(*given) / math.sqrt(width))


def images_from_zero_to_one(at: Place) -> None:
    at.model.vision.register_forward_pre_hook(lambda module, given: ((given[0] + 1) / 2,))


def embedding_not_times_sqrt_width(at: Place) -> None:
    at.model.embedding.weight /= math.sqrt(at.model.config.language.width)


def absent_camera_is_seen(at: Place) -> None:
    at.golden["image_mask"].fill_(True)


def padding_is_seen(at: Place) -> None:
    at.golden["token_mask"].fill_(True)


def prefix_positions_count_what_is_masked(at: Place) -> None:
    def counted(rotation: Callable[..., Any]) -> Callable[..., Any]:
        return lambda positions, head_dim: rotation(torch.arange(positions.shape[1])[None], head_dim)

    def read_wrongly(read: Callable[..., Any]) -> Callable[..., Any]:
        def wrong(model: Pi0, hidden: Tensor, mask: Tensor) -> Any:
            with pytest.MonkeyPatch.context() as inside:
                inside.setattr(pi0, "_rotation", counted(pi0._rotation))
                return read(model, hidden, mask)

        return wrong

    at.replace(Pi0, "read", read_wrongly)
    at.replace(Pi0, "prefix", lambda prefix: lambda *given: prefix(*given, packed=False))


def vision_gelu_by_erf(at: Place) -> None:
    plain, forward = eyes.F, eyes.SiglipLayer.forward

    def by_erf(layer: eyes.SiglipLayer, x: Tensor) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(eyes, "F", functional(gelu=lambda x, approximate: plain.gelu(x)))
            return forward(layer, x)

    at.patch.setattr(eyes.SiglipLayer, "forward", by_erf)


# ── layers ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def functional(**changed: Callable[..., Any]) -> SimpleNamespace:
    """torch.nn.functional with some of it replaced."""
    return SimpleNamespace(**{**vars(F), **changed})


def gelu_by_erf(at: Place) -> None:
    at.patch.setattr(gemma, "F", functional(gelu=lambda x, approximate: F.gelu(x)))


def rms_norm_weight_without_one(at: Place) -> None:
    at.replace(gemma.RMSNorm, "forward", lambda _: lambda norm, x, time=None: (gemma._unit_rms(x) * norm.weight, None))


def rope_interleaved(at: Place) -> None:
    def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        cos, sin = rotation
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)

    at.patch.setattr(gemma, "_rotate", rotate)


def rope_frequencies_in_bf16(at: Place) -> None:
    def rotation(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
        frequency = (10000.0 ** -(torch.arange(0, head_dim, 2) / head_dim)).bfloat16().float()
        angle = positions[:, None, :, None] * frequency
        return angle.cos(), angle.sin()

    at.patch.setattr(pi0, "_rotation", rotation)


def heads_share_keys_in_turn(at: Place) -> None:
    def repeated(attend: Callable[..., Any]) -> Callable[..., Any]:
        def wrong(attention: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
            times = query.shape[1] // key.shape[1]
            return attend(attention, query, key.repeat(1, times, 1, 1), value.repeat(1, times, 1, 1), mask)

        return wrong

    at.replace(gemma.Attention, "attend", repeated)


# ── suffix ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def suffix_position_after_padded_prefix(at: Place) -> None:
    def remember_wrongly(remember: Callable[..., Memory]) -> Callable[..., Memory]:
        def wrong(model: Pi0, prefix: Prefix, *given: Any) -> Memory:
            shift = at.padded - prefix.mask.sum(1, keepdim=True)
            with pytest.MonkeyPatch.context() as inside:
                rotation = pi0._rotation
                inside.setattr(pi0, "_rotation", lambda positions, size: rotation(positions + shift, size))
                return remember(model, prefix, *given)

        return wrong

    at.replace(Pi0, "remember", remember_wrongly)


def actions_see_only_the_past(at: Place) -> None:
    def causal(remember: Callable[..., Memory]) -> Callable[..., Memory]:
        def wrong(model: Pi0, *given: Any) -> Memory:
            memory, length = remember(model, *given), model.config.horizon
            rows = memory.visible.expand(-1, length, -1).clone()
            rows[..., -length:] = torch.ones(length, length, dtype=torch.bool).tril()
            return memory._replace(visible=rows)

        return wrong

    at.replace(Pi0, "remember", causal)


def state_sees_actions(at: Place) -> None:
    side_by_side(at, state_sees_actions=True)


def action_time_is_time_action(at: Place) -> None:
    mlp = at.model.action_time_mlp_in
    mlp.weight.copy_(mlp.weight.roll(at.model.config.expert.width, 1))


def side_by_side(at: Place, state_sees_actions: bool) -> None:
    """pi0's state token in one sequence with the actions, as the paper draws it. Ours computes it before them, so
    this fault could not be planted there."""

    def advance(model: Pi0, memory: tuple[Prefix, Tensor], x_t: Tensor, moment: Moment) -> Tensor:
        prefix, state = memory
        actions = model._enter(x_t, moment)[:, 0]
        x = torch.cat([model.state_proj(state)[:, None], actions], 1)
        length = x.shape[1]
        own = torch.ones(length, length, dtype=torch.bool)
        own[0, 1:] = state_sees_actions
        visible = torch.cat([prefix.mask[:, None].expand(-1, length, -1), own.expand(len(x), -1, -1)], 2)[:, None]
        rotation = pi0._rotation(prefix.mask.sum(1, keepdim=True) + torch.arange(length), model.config.expert.head_dim)
        for layer, *held in zip(model.expert, prefix.keys, prefix.values, strict=True):
            y, _ = layer.input_layernorm(x)
            key, value = (torch.cat(pair, 2) for pair in zip(held, layer.self_attn.key_value(y, rotation), strict=True))
            x = layer.finish(x, layer.self_attn.attend(layer.self_attn.query(y, rotation), key, value, visible))
        return model.action_out_proj(model.expert_norm(x)[0])[:, None, 1:]

    at.patch.setattr(Pi0, "remember", lambda model, prefix, state, draws=1: (prefix, state))
    at.patch.setattr(Pi0, "advance", advance)


# ── time ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def time_embedding(
    fraction: Callable[[int], Tensor] = lambda half: torch.linspace(0, 1, half, dtype=torch.float64),
    dtype: torch.dtype = torch.float64,
    cosine_first: bool = False,
) -> Callable[[Place], None]:
    def embed(t: Tensor, width: int) -> Tensor:
        period = 4e-3 * 1000.0 ** fraction(width // 2).to(dtype)
        angle = t.to(dtype)[..., None] / period * 2 * math.pi
        halves = [angle.sin(), angle.cos()]
        return torch.cat(halves[::-1] if cosine_first else halves, -1).float()

    return lambda at: at.patch.setattr(pi0, "_time_embedding", embed)


def time_accumulated_in_fp32(at: Place) -> None:
    def schedule(model: Pi0, steps: int | None = None) -> Schedule:
        count, moments = steps or model.config.steps, []
        t = torch.ones(1, 1)
        for _ in range(count):
            moments.append(model.moment(t))
            t = t + torch.tensor(-1 / count)
        return Schedule(tuple(moments))

    at.patch.setattr(Pi0, "schedule", schedule)


def second_silu_of_time_missing(at: Place) -> None:
    seen: list[Tensor] = []
    at.model.time_mlp_out.register_forward_hook(lambda module, given, out: seen.append(out))
    passing = functional(silu=lambda x: x if any(x is out for out in seen) else F.silu(x))
    at.patch.setattr(pi0, "F", passing)


def modulation_in_order(*order: int) -> Callable[[Place], None]:
    """pi0.5's dense layers say scale, shift, gate."""

    def plant(at: Place) -> None:
        for name, parameter in at.model.named_parameters():
            if ".dense." in name:
                thirds = parameter.clone().chunk(3)
                parameter.copy_(torch.cat([thirds[i] for i in order]))

    return plant


def modulation_scale_without_one(at: Place) -> None:
    for name, parameter in at.model.named_parameters():
        if name.endswith(".dense.bias"):
            parameter.chunk(3)[0].sub_(1)


def gate_ignored(at: Place) -> None:
    at.patch.setattr(gemma, "_residual", lambda x, branch, gate: x + branch)


TRAPS: dict[str, Callable[[Place], None]] = {
    "image features divided by sqrt(width)": image_features_divided_by_sqrt_width,
    "images from 0 to 1": images_from_zero_to_one,
    "token embedding not multiplied by sqrt(width)": embedding_not_times_sqrt_width,
    "absent camera seen": absent_camera_is_seen,
    "padding seen": padding_is_seen,
    "prefix positions count what is masked": prefix_positions_count_what_is_masked,
    "suffix positions start after padding": suffix_position_after_padded_prefix,
    "vision's gelu by erf": vision_gelu_by_erf,
    "gelu by erf": gelu_by_erf,
    "rms norm multiplies by w, not 1 + w": rms_norm_weight_without_one,
    "rope interleaved": rope_interleaved,
    "rope frequencies in bf16": rope_frequencies_in_bf16,
    "query heads take keys in turn": heads_share_keys_in_turn,
    "actions see only the past": actions_see_only_the_past,
    "time embedding cos before sin": time_embedding(cosine_first=True),
    "time embedding without its last period": time_embedding(lambda half: torch.arange(half) / half),
    "time embedding in fp32": time_embedding(dtype=torch.float32),
    "time accumulated in fp32": time_accumulated_in_fp32,
}
PI0_TRAPS = {
    "time before action": action_time_is_time_action,
    "state sees actions": state_sees_actions,
}
PI05_TRAPS = {
    "second silu of time missing": second_silu_of_time_missing,
    "modulation shift, scale, gate": modulation_in_order(1, 0, 2),
    "modulation gate, scale, shift": modulation_in_order(2, 1, 0),
    "modulation scale without 1": modulation_scale_without_one,
    "gate ignored": gate_ignored,
}
PLANTED = {
    **{f"{family}: {name}": (family, plant) for name, plant in TRAPS.items() for family in FAMILIES},
    **{f"pi0: {name}": ("pi0", plant) for name, plant in PI0_TRAPS.items()},
    **{f"pi05: {name}": ("pi05", plant) for name, plant in PI05_TRAPS.items()},
}


def place(patch: pytest.MonkeyPatch, family: str) -> Place:
    golden = load(family, "grouped")
    return Place(patch, fill(Pi0(golden.config), golden.seed), golden)


@pytest.mark.parametrize(("family", "plant"), PLANTED.values(), ids=PLANTED)
@torch.no_grad()
def test_the_golden_comparison_notices(
    family: str, plant: Callable[[Place], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = place(monkeypatch, family)
    assert max(gaps(at.model, at.golden).values()) < TOLERANCE
    plant(at)
    found = gaps(at.model, at.golden)
    assert max(gap for gap in found.values() if gap < math.inf) > FAR  # by numbers, not by shapes alone


@torch.no_grad()
def test_state_and_actions_side_by_side_are_right_where_the_state_sees_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted `state sees actions` differs from the truth by that alone."""
    at = place(monkeypatch, "pi0")
    side_by_side(at, state_sees_actions=False)
    found = gaps(at.model, at.golden)
    assert max(found[part] for part in ("step", "sample")) < TOLERANCE
