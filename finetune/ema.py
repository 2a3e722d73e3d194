"""An exponential moving average of weights: what is evaluated and published, while the raw weights still jump about."""

from __future__ import annotations

import copy
from typing import Any, Generic, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


class Ema(Generic[Model]):
    """`model` is the averaged copy. It shares what the source has frozen, so that a large frozen part costs nothing.
    The decay warms up as (1 + n) / (10 + n), so early averages are not stale."""

    def __init__(self, source: Model, decay: float):
        frozen: dict[int, Any] = {id(p): p for p in source.parameters() if not p.requires_grad}
        self.model: Model = copy.deepcopy(source, frozen).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    def follow(self, source: Model) -> None:
        """Call when more of the source was set free: from here on that is averaged too."""
        for module, twin in zip(source.modules(), self.model.modules(), strict=True):
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad and getattr(twin, name) is parameter:
                    setattr(twin, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))

    @torch.no_grad()
    def update(self, source: Model) -> None:
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        pairs = zip(self.model.parameters(), source.parameters(), strict=True)
        moving = [(average, raw) for average, raw in pairs if average is not raw]
        torch._foreach_lerp_([average for average, _ in moving], [raw for _, raw in moving], 1 - keep)
