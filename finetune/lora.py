"""Adapters of low rank (Hu et al. 2021, arXiv 2106.09685): a frozen linear layer learns y = W x + (alpha / rank) B A x.

An adapter is a child of the layer it belongs to, called by a forward hook, so that the model's own code and names stay
as they are and copies of a model copy it. Before a version is sealed it is folded into W: whoever serves that version
knows nothing of adapters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hotpolicy.runtime.errors import ConfigError

CHILD = "lora"


class Adapter(nn.Module):
    """Changes nothing at first: A is random, B is zero."""

    def __init__(self, layer: nn.Linear, rank: int, alpha: float, random: torch.Generator):
        super().__init__()
        down = torch.empty(rank, layer.in_features)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=random)
        self.down = nn.Parameter(down, requires_grad=False)  # A
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank), requires_grad=False)  # B
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x.to(self.down.dtype), self.down), self.up) * self.scale

    def change(self) -> Tensor:
        """What it adds to its layer's weight."""
        return self.scale * (self.up @ self.down)


def attach(model: nn.Module, names: Iterable[str], rank: int, alpha: float, random: torch.Generator) -> None:
    """Give these linear layers adapters. Raises ConfigError where `rank` is more than a layer has."""
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear), name
        if rank > min(layer.in_features, layer.out_features):
            raise ConfigError(f"lora_rank: {name} is {layer.out_features} by {layer.in_features}, got rank {rank}")
        layer.add_module(CHILD, Adapter(layer, rank, alpha, random))
        layer.register_forward_hook(_add)


def is_adapter(name: str) -> bool:
    return f".{CHILD}." in name


def folded(name: str) -> str:
    """The tensor that an adapter's parameter ends in."""
    return f"{name.partition(f'.{CHILD}.')[0]}.weight"


def folded_bytes(model: nn.Module) -> int:
    """Of the weights that `fold` makes anew."""
    layers = (layer for layer in model.modules() if isinstance(layer, nn.Linear) and CHILD in layer._modules)
    return sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)


@torch.no_grad()
def fold(model: nn.Module) -> None:
    """Put every adapter into its layer's weight, in the weight's precision, and take it away."""
    for layer in list(model.modules()):
        adapter = layer._modules.get(CHILD)
        if isinstance(layer, nn.Linear) and isinstance(adapter, Adapter):
            weight = (layer.weight.float() + adapter.change()).to(layer.weight.dtype)
            layer.weight = nn.Parameter(weight, requires_grad=False)  # a new one: the old is the parent's
            del layer._modules[CHILD]
            for handle in [handle for handle, hook in layer._forward_hooks.items() if hook is _add]:
                del layer._forward_hooks[handle]


def _add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    adapter = layer._modules[CHILD]
    assert adapter is not None
    added: Tensor = adapter(inputs[0])
    return output + added.to(output.dtype)
