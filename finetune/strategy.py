"""What a tuning run may change: names for sets of the model's parameter groups, and how fast each learns.

heads        the projections of state, action and time
expert       heads and the action expert: vision and language stay frozen, so their K/V can be cached
lora         heads, and adapters of low rank on the linear layers of expert and language
lora-expert  the same on the expert alone: K/V can be cached
top-N        expert and the upper N language layers
full         everything
progressive  heads, then expert, then the upper half of the language layers too, then everything, lower layers at lower
             rates; with held-out episodes a stage is entered only if the one before it made them better
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from hotpolicy.finetune.lora import is_adapter
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.model.vla import Vla

NAMES = ("heads", "expert", "lora", "lora-expert", "top-N", "full", "progressive")
RATES = {"heads": 1e-3, "expert": 1e-3, "lora": 2e-3, "top": 5e-4, "full": 5e-4, "progressive": 1e-3}
SIGHT = ("vision", "projector", "embedding")
PREFIX = (*SIGHT, "language")
FADE = 0.8  # a language layer's rate, as part of that of the layer above it, in progressive tuning


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the run in which the same groups learn."""

    name: str
    share: float  # of the run's steps
    rates: Mapping[str, float]  # parameter group -> multiple of the run's rate; a group not named is frozen
    adapted: frozenset[str] = frozenset()  # groups that are frozen but for their layers' adapters

    @property
    def frozen_prefix(self) -> bool:
        """Whether K/V of the prefix cannot change, so that computing them once per frame is exact."""
        return not any(group.partition(".")[0] in PREFIX for group in (*self.rates, *self.adapted))

    def learning(self, model: Vla) -> dict[str, float]:
        """Parameter name -> multiple of the rate. Parameters that never reach the actions are left out: they would
        only cost memory."""
        idle, found = model.idle(), {}
        for name, group in model.groups().items():
            rate = float(group in self.adapted) if is_adapter(name) else self.rates.get(group, 0.0)
            if rate and name not in idle:
                found[name] = rate * model.pace(group)
        return found

    def layers(self, model: Vla) -> Iterator[str]:
        """The linear layers that adapters go to."""
        idle, groups = model.idle(), model.groups()
        for name, layer in model.named_modules():
            weight = f"{name}.weight"
            if isinstance(layer, nn.Linear) and weight not in idle and groups[weight] in self.adapted:
                yield name


@dataclass(frozen=True, slots=True)
class Strategy:
    name: str
    rate: float  # the peak, where a caller sets none
    stages: tuple[Stage, ...]

    def stage_at(self, done: float) -> Stage:
        """The stage when this part of the run, 0 to 1, is done."""
        for stage in self.stages:
            done -= stage.share
            if done < -1e-9:
                return stage
        return self.stages[-1]


def strategy(name: str, model: Vla) -> Strategy:
    """Raises ConfigError for a name that is not a strategy of this model."""
    groups = set(model.groups().values())
    layers = sum(group.startswith("language.") for group in groups)
    heads = {"heads": 1.0}
    expert = heads | {group: 1.0 for group in groups if group.startswith("expert.")}
    if name == "heads":
        return Strategy(name, RATES[name], (Stage(name, 1.0, heads),))
    if name == "expert":
        return Strategy(name, RATES[name], (Stage(name, 1.0, expert),))
    if name in ("lora", "lora-expert"):
        adapted = frozenset(expert) - {"heads"} | (frozenset(_language(layers, layers)) if name == "lora" else set())
        return Strategy(name, RATES["lora"], (Stage(name, 1.0, heads, adapted),))
    if name == "full":
        return Strategy(name, RATES[name], (Stage(name, 1.0, expert | _language(layers, layers) | _sight()),))
    if name == "progressive":
        upper = math.ceil(layers / 2)
        slower = {f"language.{i}": 0.5 * FADE ** (layers - 1 - i) for i in range(layers)}
        higher = {group: rate for group, rate in slower.items() if group in _language(layers, upper)}
        return Strategy(
            name,
            RATES[name],
            (
                Stage("heads", 0.1, heads),
                Stage("expert", 0.2, expert),
                Stage(f"top-{upper}", 0.2, expert | higher),
                Stage("full", 0.5, expert | slower | _sight(0.5)),
            ),
        )
    kind, _, count = name.partition("-")
    if kind == "top" and count.isdigit() and 1 <= int(count) <= layers:
        return Strategy(name, RATES["top"], (Stage(name, 1.0, expert | _language(layers, int(count))),))
    raise ConfigError(f"strategy: expected one of {', '.join(NAMES)} with N from 1 to {layers}, got {name!r}")


def _language(layers: int, upper: int) -> dict[str, float]:
    return {f"language.{index}": 1.0 for index in range(layers - upper, layers)}


def _sight(rate: float = 1.0) -> dict[str, float]:
    return dict.fromkeys(SIGHT, rate)
