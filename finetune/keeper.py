"""Which weights of a run are the best so far, and whether to go on: pure decisions over held-out figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from hotpolicy.finetune.curves import Evaluation
from hotpolicy.finetune.held_out import badness

GAIN = 0.01  # of the logarithmic score: a stage that made the best one per cent better has earned the next


def score(first: Evaluation, now: Evaluation) -> float:
    """Lower is better: new and old tasks in equal parts, against what they were before tuning."""
    new = badness(first.new, now.new)
    return (new + badness(first.old, now.old)) / 2 if now.old else new


@dataclass
class Keeper:
    """`see` every evaluation, in order. Without held-out figures of new tasks it keeps nothing."""

    patience: int | None  # evaluations without improvement before a run is exhausted; None: never
    keeps: bool  # the best weights; without, only their step
    first: Evaluation
    best: float = math.inf
    step: int = 0  # of the best
    waited: int = 0  # evaluations since
    weights: dict[str, Tensor] = field(default_factory=dict)
    best_new: float = 0.0  # of the new tasks alone; 0: as before tuning
    at_entry: float = 0.0  # that, when the present stage was entered

    @property
    def exhausted(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    def see(self, evaluation: Evaluation, weights: Mapping[str, Tensor]) -> None:
        if not evaluation.new:
            return
        self.best_new = min(self.best_new, badness(self.first.new, evaluation.new))
        found = score(self.first, evaluation)
        if found < self.best:
            self.best, self.step, self.waited = found, evaluation.step, 0
            if self.keeps:
                self._keep(weights)
        else:
            self.waited += 1

    def _keep(self, weights: Mapping[str, Tensor]) -> None:
        for name, value in weights.items():
            if name in self.weights:
                self.weights[name].copy_(value)  # there is never room for two
            else:
                self.weights[name] = value.clone()

    def facts(self) -> dict[str, float | int]:
        return {name: getattr(self, name) for name in ("best", "step", "waited", "best_new", "at_entry")}

    def earned_next_stage(self) -> bool:
        """Whether the stage that ends made the new tasks better; without held-out figures of them, always. Old tasks
        do not count here: what the first steps take from them, replay gives back later."""
        gained = not self.first.new or self.best_new < self.at_entry - GAIN
        self.at_entry = self.best_new
        return gained
