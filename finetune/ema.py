"""An exponential moving average of weights: what is evaluated and published, while the raw weights still jump about."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


class Ema(Generic[Model]):
    """`model` is the averaged copy. The decay warms up as (1 + n) / (10 + n), so early averages are not stale."""

    def __init__(self, source: Model, decay: float):
        self.model: Model = copy.deepcopy(source).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, source: Model) -> None:
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.model.parameters()), list(source.parameters()), 1 - keep)
