"""What autograd keeps of a computation for the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from hotpolicy.runtime.model.vla import Vla

R = TypeVar("R")


@dataclass
class Activations:
    """Bytes, of all frames that were computed together."""

    total: int = 0
    widest: int = 0  # the largest single one
    inputs: int = 0  # of layers
    widest_layer: int = 0
    prefix: int = 0  # where it is frozen: of all frames


@contextmanager
def counting(model: Vla) -> Iterator[Activations]:
    """Bytes that autograd keeps, each storage once, without the weights; and, layer by layer, what it would keep if
    layers were computed again."""
    count = Activations()
    # by the storage's number: shapes without data have no address
    seen = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            count.total += storage.nbytes()
            count.widest = max(count.widest, storage.nbytes())
            held.append(tensor)  # a freed storage's number may be another's next
        return tensor

    def layer(function: Callable[..., R], *args: Any) -> R:
        before = count.total
        result = function(*args)
        count.widest_layer = max(count.widest_layer, count.total - before)
        if isinstance(args[0], Tensor):
            count.inputs += args[0].numel() * args[0].element_size()
        return result

    held: list[Tensor] = []
    model.layer = layer  # type: ignore[method-assign]  # of this one instance, for this one call
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield count
    finally:
        del model.layer
        held.clear()
