"""What quantised products do to a model, found out in torch: the ranges of activations, and which layers mind most."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from hotpolicy.runtime.engine import Batch
from hotpolicy.runtime.engine.torch_engine import TorchEngine
from hotpolicy.runtime.graphs.quantise import Plan, Range, decode, encode, steps_of

# A layer's attention, or its feed-forward part: finer is not told apart.
_BLOCK = re.compile(r"^(.*\.\d+(?:\.(?:self_attn|mlp))?)\.")


def ranges(engine: TorchEngine, batches: Sequence[Batch], weights: Collection[str]) -> dict[str, Range]:
    """Weight -> the least and the most that it is multiplied with in these frames. Of an engine that is not traced: in
    one call no layer can be watched."""
    found: dict[str, Range] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            (low, high), (least, most) = found.get(name, (0.0, 0.0)), given[0].aminmax()
            found[name] = min(low, float(least)), max(high, float(most))

        return note

    with _hooked(engine.model, {name: watch(name) for name in weights}):
        for batch in batches:
            engine.infer(batch)
    return found


def by_harm(engine: TorchEngine, batches: Sequence[Batch], plan: Plan, weights: Collection[str]) -> list[set[str]]:
    """The blocks of `weights`, that which moves the actions most when it alone is quantised first."""
    wanted = [engine.infer(batch) for batch in batches]
    blocks: dict[str, set[str]] = {}
    for name in weights:
        found = _BLOCK.match(name)
        blocks.setdefault(found[1] if found else name, set()).add(name)
    harm = {}
    for block, names in blocks.items():
        with quantised(engine.model, plan, names):
            harm[block] = max(
                float(np.abs(engine.infer(batch) - want).max()) for batch, want in zip(batches, wanted, strict=True)
            )
    return [blocks[block] for block in sorted(blocks, key=lambda block: -harm[block])]


@contextmanager
def quantised(model: nn.Module, plan: Plan, weights: Iterable[str]) -> Iterator[None]:
    """Meanwhile these products are what integers would make of them, computed in fp32."""
    before = {name: model.get_parameter(name).data for name in weights}

    def rounding(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        return lambda module, given: (_rounded(given[0], plan.range(name)), *given[1:])

    try:
        for name, data in before.items():
            form = plan.product(name)
            rounded = decode(encode(name, data.numpy(), form), name, form)
            model.get_parameter(name).data = torch.from_numpy(np.ascontiguousarray(rounded))
        inner = {name: rounding(name) for name in before if plan.product(name) == "int8"}
        with _hooked(model, inner):
            yield
    finally:
        for name, data in before.items():
            model.get_parameter(name).data = data


def _rounded(x: Tensor, known: Range | None) -> Tensor:
    """As ONNX's QuantizeLinear with a known range, or DynamicQuantizeLinear without, and back."""
    size, zero = steps_of(known or (min(0.0, float(x.min())), max(0.0, float(x.max()))))
    return ((x / size).round() + zero).clamp(0, 255).sub(zero) * size


@contextmanager
def _hooked(model: nn.Module, before: Mapping[str, Callable[..., object]]) -> Iterator[None]:
    """Weight -> what is called with whatever its layer is given."""
    hooks = [model.get_submodule(name.rpartition(".")[0]).register_forward_pre_hook(f) for name, f in before.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
