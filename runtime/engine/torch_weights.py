"""A bundle's tensors as torch's, and a model made of them without memory of its own, so that nothing is random."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeVar

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.engine.torch_place import Place
from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.model import family
from hotpolicy.runtime.model.vla import Vla

M = TypeVar("M", bound=nn.Module)


def build_model(model: Mapping[str, object], tensors: Mapping[str, Tensor]) -> Vla:
    """A manifest's model entry and every one of its tensors -> the model. Raises BundleError for another family,
    a bad configuration, and any tensor that is missing, unknown or of another shape."""
    make = family(model.get("family"))
    try:
        empty = _empty(make, json.dumps(model["config"], sort_keys=True))
    except (KeyError, TypeError) as error:
        raise BundleError(f"model.config: {error}") from error
    expected = dict(empty.named_parameters())
    if missing := sorted(set(expected) - set(tensors)):
        raise BundleError(f"tensors: {len(missing)} missing, first {missing[0]!r}")
    if unknown := sorted(set(tensors) - set(expected)):
        raise BundleError(f"tensors: {len(unknown)} that the model does not have, first {unknown[0]!r}")
    for name, parameter in expected.items():
        if tensors[name].shape != parameter.shape:
            raise BundleError(f"{name}: expected shape {tuple(parameter.shape)}, got {tuple(tensors[name].shape)}")
    return apply_delta(empty, tensors)


@lru_cache(maxsize=4)
def _empty(make: type[Vla], config: str) -> Vla:
    """A model without memory for its weights: building takes Python ten times as long as copying, during which nothing
    else of this process computes."""
    with torch.device("meta"):
        return make.of(json.loads(config))


@dataclass(frozen=True)
class Weights:
    """All tensors of a version at their place, and the model of an ancestor, of which one of its own can be made."""

    tensors: Mapping[str, Tensor]  # in the order of the model's parameters
    _ancestor: Vla
    _moved: Mapping[str, Tensor]  # those that are not the ancestor's
    _precise: frozenset[str]

    @classmethod
    def of(cls, model: Vla) -> Weights:
        return cls({name: it.detach() for name, it in model.named_parameters()}, model, {}, model.precise())

    def changed(self, delta: Mapping[str, Tensor], place: Place) -> Weights:
        """Those of a delta on this version. Raises BundleError for a tensor that this one does not have, or has in
        another shape."""
        check_fits(self.tensors, delta)
        moved = {
            name: tensor.to(place.device, torch.float32 if name in self._precise else place.dtype)
            for name, tensor in delta.items()
        }
        return Weights({**self.tensors, **moved}, self._ancestor, {**self._moved, **moved}, self._precise)

    @cached_property
    def model(self) -> Vla:
        return apply_delta(self._ancestor, self._moved) if self._moved else self._ancestor


def check_fits(own: Mapping[str, Tensor], delta: Mapping[str, Tensor]) -> None:
    if unknown := sorted(set(delta) - set(own)):
        raise BundleError(f"delta: {unknown[0]!r} is not a tensor of the parent")
    for name, tensor in delta.items():
        if tensor.shape != own[name].shape:
            raise BundleError(f"{name}: expected shape {tuple(own[name].shape)}, got {tuple(tensor.shape)}")


def apply_delta(parent: Vla, delta: Mapping[str, Tensor]) -> Vla:
    """A model of its own that shares the parent's storage wherever the delta says nothing. Raises BundleError for
    a tensor that the parent does not have, or has in another shape."""
    check_fits(dict(parent.named_parameters()), delta)
    twin: Vla = _twin(parent)
    for name, tensor in delta.items():
        module, _, leaf = name.rpartition(".")
        twin.get_submodule(module)._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    return twin


def _twin(module: M) -> M:
    """Another module with parameters of its own over the same memory."""
    twin = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, dict | set):  # of hooks and the like: what is added to one must not be in the other
            twin.__dict__[name] = copy.copy(value)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            twin._parameters[name] = nn.Parameter(parameter.detach(), requires_grad=False)
    for name, child in module._modules.items():
        twin._modules[name] = None if child is None else _twin(child)
    return twin


def map_tensors(bundle: Bundle) -> dict[str, Tensor]:
    """A bundle's own tensors over its mapped file, in their own dtypes, for `assign=True`. Every digest is verified,
    and that has touched every page, so the first inference waits for no disk. Pages are shared with whoever maps the
    file; one that is written to becomes a private copy and leaves the file alone. Raises BundleError."""
    return tensors_from_numpy(bundle.tensors())


def tensors_from_numpy(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Shares memory with arrays that are in row-major order. `ml_dtypes.bfloat16` becomes `torch.bfloat16`."""
    return {name: _from_numpy(np.asarray(array, order="C")) for name, array in arrays.items()}


def tensor_to_numpy(tensor: Tensor) -> np.ndarray:
    """Shares memory with a tensor on the CPU. `torch.bfloat16` becomes `ml_dtypes.bfloat16`."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # numpy has no such type of its own, so torch refuses
        return np.asarray(tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    return np.asarray(tensor.numpy())


def _from_numpy(array: np.ndarray) -> Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
