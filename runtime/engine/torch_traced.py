"""A whole chunk as one call: a model's operations written down once, and run for every version without the interpreter.

A small policy's chunk is some thousand operations of microseconds. Computed one by one, each gives up the interpreter
and has to get it back, so beside a thread that is busy in Python (one that loads the next version, say) the chunk
takes several times as long. Written down by torch.jit.trace they are one call that does not need the interpreter, and
take half the time alone. Weights, and what is made of them, are inputs: a version with the same configuration runs the
same code, so that a swap writes nothing down anew.

torch.jit is in maintenance, and nothing else in torch runs operations without the interpreter or a compiler on the
robot. Where it is gone, or cannot follow a model, the model is computed operation by operation, with the same answers.
"""

from __future__ import annotations

import json
import logging
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hotpolicy.runtime.model.guided import Promise
from hotpolicy.runtime.model.vla import Vla

Inputs = tuple[Tensor, ...]  # images, image_mask, tokens, token_mask; state, noise; previous, weight, limit
MOST = 4  # configurations whose code is kept
log = logging.getLogger(__name__)
_kept: OrderedDict[str, Traced | None] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True)
class Traced:
    """One configuration's code, for any batch, text and number of cameras. It is not optimised: that takes a third of
    a second, and gains nothing."""

    _schedule: Callable[[Inputs], Inputs] | None  # of a family that has one
    _chunk: Callable[[Inputs, Inputs, Inputs], Tensor]

    def schedule(self, weights: Inputs) -> Inputs:
        """The tensors in what `Vla.schedule` makes of these weights, in order."""
        with torch.jit.optimized_execution(False):
            return self._schedule(weights) if self._schedule else ()

    def chunk(self, weights: Inputs, schedule: Inputs, given: Inputs) -> Tensor:
        """Actions (batch, horizon, action_dim), normalised."""
        with torch.jit.optimized_execution(False):
            return self._chunk(weights, schedule, given)


class Version:
    """The code with one version's weights."""

    def __init__(self, code: Traced, weights: Inputs):
        """`weights` in the order of the model's parameters."""
        self._code, self._weights, self._schedule = code, weights, code.schedule(weights)

    def compute(self, given: Inputs) -> Tensor:
        """Actions (batch, horizon, action_dim), normalised. Raises RuntimeError, whatever it is that is wrong."""
        try:
            return self._code.chunk(self._weights, self._schedule, given)
        except RuntimeError as error:  # torch puts its whole stack into it, and what was wrong at the end
            raise RuntimeError(str(error).strip().splitlines()[-1]) from error


def traced(model: Vla, given: Inputs) -> Traced | None:
    """The code of this model's configuration and precision, made when there is none yet. `given` is an example, of
    which nothing but the ranks of its tensors is kept. None where torch cannot follow the model."""
    dtypes = [str(parameter.dtype) for parameter in model.parameters()]
    key = json.dumps([type(model).__module__, model.family, model.config.to_dict(), dtypes], sort_keys=True)
    with _lock:
        if key not in _kept:
            if len(_kept) == MOST:
                _kept.popitem(last=False)
            _kept[key] = _trace(model, given)
        _kept.move_to_end(key)
        return _kept[key]


def _trace(model: Vla, given: Inputs) -> Traced | None:
    made = model.schedule()
    weights, moments = tuple(parameter.detach() for parameter in model.parameters()), tuple(leaves(made))
    held = [(model, made)]  # torch keeps the functions for ever: the model has to be taken out of them

    def schedule(weights: Inputs) -> Inputs:
        model, _ = held[0]
        with _replaced(model, weights):
            return tuple(leaves(model.schedule()))

    def chunk(weights: Inputs, moments: Inputs, given: Inputs) -> Tensor:
        model, made = held[0]
        *seen, state, noise = given[:-3]
        with _replaced(model, weights):
            prefix = model.prefix(*seen, packed=False)  # shapes follow from shapes alone
            return model.flow(prefix, state, noise, filled(made, iter(moments)), Promise(*given[-3:]))

    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("error", torch.jit.TracerWarning)  # something of the example would become a constant
            of_time = torch.jit.trace(schedule, (weights,), check_trace=False) if moments else None
            return Traced(of_time, torch.jit.trace(chunk, (weights, moments, given), check_trace=False))
    except (torch.jit.TracerWarning, RuntimeError, SystemError, TypeError) as error:  # System: a warning raised in C
        log.warning("%s is computed operation by operation: torch cannot trace it: %s", model.family, error)
        return None
    finally:
        held.clear()


@contextmanager
def _replaced(model: Vla, weights: Inputs) -> Iterator[None]:
    """Meanwhile these are its parameters: torch's own way of doing this refuses to be traced."""
    places = [(module, leaf) for module in model.modules() for leaf, it in module._parameters.items() if it is not None]
    before = [module._parameters[leaf] for module, leaf in places]
    try:
        for (module, leaf), tensor in zip(places, weights, strict=True):
            module._parameters[leaf] = tensor  # type: ignore[assignment]
        yield
    finally:
        for (module, leaf), parameter in zip(places, before, strict=True):
            module._parameters[leaf] = parameter


def leaves(value: Any) -> Iterator[Tensor]:
    """The tensors in a structure of tuples and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from leaves(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from leaves(getattr(value, field.name))


def filled(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same structure with other tensors, taken in order."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, tuple):
        parts = [filled(part, tensors) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: filled(getattr(value, field.name), tensors) for field in fields(value)})
    return value
