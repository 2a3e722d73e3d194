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
from hotpolicy.runtime.model.vla import Vla

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

    def learning(self, model: Vla) -> dict[str, float]:
        """Parameter name -> multiple of the rate. Parameters that never reach the actions are left out: they would
        only cost memory."""
        idle = model.idle()
        return {
            name: self.rates[group] * model.pace(group)
            for name, group in model.groups().items()
            if group in self.rates and name not in idle
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


def strategy(name: str, model: Vla) -> Strategy:
    """Raises ConfigError for a name that is not a strategy of this model."""
    groups = set(model.groups().values())
    layers = sum(group.startswith("language.") for group in groups)
    expert = dict.fromkeys((group for group in groups if group == "heads" or group.startswith("expert.")), 1.0)
    if name == "heads":
        return Strategy(name, RATES[name], (Stage(name, 1.0, {"heads": 1.0}),))
    if name == "expert":
        return Strategy(name, RATES[name], (Stage(name, 1.0, expert),))
    if name == "full":
        return Strategy(name, RATES[name], (Stage(name, 1.0, expert | _language(layers, layers) | _sight()),))
    if name == "progressive":
        upper = math.ceil(layers / 2)
        return Strategy(
            name,
            RATES[name],
            (
                Stage("expert", 0.3, expert),
                Stage(f"top-{upper}", 0.2, expert | _language(layers, upper, 0.5)),
                Stage("full", 0.5, expert | _language(layers, layers, 0.5) | _sight(0.5)),
            ),
        )
    kind, _, count = name.partition("-")
    if kind == "top" and count.isdigit() and 1 <= int(count) <= layers:
        return Strategy(name, RATES["top"], (Stage(name, 1.0, expert | _language(layers, int(count))),))
    raise ConfigError(f"strategy: expected one of {', '.join(NAMES)} with N from 1 to {layers}, got {name!r}")


def _language(layers: int, upper: int, rate: float = 1.0) -> dict[str, float]:
    return {f"language.{index}": rate for index in range(layers - upper, layers)}


def _sight(rate: float = 1.0) -> dict[str, float]:
    return dict.fromkeys(SIGHT, rate)
