"""What a tuning run may change: names for sets of the model's parameter groups, and how fast each learns.

heads        the projections of state, action and time
expert       heads and the action expert: vision and language stay frozen, so their K/V can be cached
top-N        expert and the upper N language layers
full         everything
progressive  expert, then the upper half of the language layers too, then everything
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.model.pi0 import Pi0, Pi0Config

NAMES = ("heads", "expert", "top-N", "full", "progressive")
RATES = {"heads": 1e-3, "expert": 1e-3, "top": 5e-4, "full": 5e-4, "progressive": 1e-3}
SIGHT = ("vision", "projector", "embedding")


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the run in which the same groups learn."""

    name: str
    share: float  # of the run's steps
    rates: Mapping[str, float]  # parameter group -> multiple of the run's rate; a group not named is frozen

    @property
    def frozen_prefix(self) -> bool:
        """Whether K/V of the prefix cannot change, so that computing them once per frame is exact."""
        return not any(group in SIGHT or group.startswith("language") for group in self.rates)

    def learning(self, model: Pi0) -> dict[str, float]:
        """Parameter name -> multiple of the rate. Parameters that never reach the actions are left out: they would
        only cost memory."""
        idle = _idle(model.config)
        return {
            name: self.rates[group]
            for name, group in model.groups().items()
            if group in self.rates and not name.startswith(idle)
        }


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


def strategy(name: str, config: Pi0Config) -> Strategy:
    """Raises ConfigError for a name that is not a strategy of a model of this size."""
    layers = config.language.layers
    expert = {"heads": 1.0, **{f"expert.{index}": 1.0 for index in range(config.expert.layers)}}
    if name == "heads":
        return Strategy(name, RATES[name], (Stage(name, 1.0, {"heads": 1.0}),))
    if name == "expert":
        return Strategy(name, RATES[name], (Stage(name, 1.0, expert),))
    if name == "full":
        return Strategy(name, RATES[name], (Stage(name, 1.0, expert | _language(layers, layers) | _sight(config)),))
    if name == "progressive":
        upper = math.ceil(layers / 2)
        return Strategy(
            name,
            RATES[name],
            (
                Stage("expert", 0.3, expert),
                Stage(f"top-{upper}", 0.2, expert | _language(layers, upper, 0.5)),
                Stage("full", 0.5, expert | _language(layers, layers, 0.5) | _sight(config, 0.5)),
            ),
        )
    kind, _, count = name.partition("-")
    if kind == "top" and count.isdigit() and 1 <= int(count) <= layers:
        return Strategy(name, RATES["top"], (Stage(name, 1.0, expert | _language(layers, int(count))),))
    raise ConfigError(f"strategy: expected one of {', '.join(NAMES)} with N from 1 to {layers}, got {name!r}")


def _language(layers: int, upper: int, rate: float = 1.0) -> dict[str, float]:
    return {f"language.{index}": rate for index in range(layers - upper, layers)}


def _sight(config: Pi0Config, rate: float = 1.0) -> dict[str, float]:
    # Embeddings are multiplied by sqrt(width) on their way in: without this they would learn as much faster.
    return {"vision": rate, "projector": rate, "embedding": rate / math.sqrt(config.language.width)}


def _idle(config: Pi0Config) -> tuple[str, ...]:
    """Beginnings of the names of parameters without any effect: only K/V leave the last language layer."""
    last = f"language.{config.language.layers - 1}"
    unused = ("self_attn.q_proj", "self_attn.o_proj", "post_attention_layernorm", "mlp")
    return ("language_norm", *(f"{last}.{part}." for part in unused))
