"""A bundle's tensors as torch's, and a model made of them without memory of its own, so that nothing is random."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.model import family
from hotpolicy.runtime.model.vla import Vla


def build_model(model: Mapping[str, object], tensors: Mapping[str, Tensor]) -> Vla:
    """A manifest's model entry and every one of its tensors -> the model. Raises BundleError for another family,
    a bad configuration, and any tensor that is missing, unknown or of another shape."""
    make = family(model.get("family"))
    try:
        with torch.device("meta"):
            built = make.of(model["config"])  # type: ignore[arg-type]
    except (KeyError, TypeError) as error:
        raise BundleError(f"model.config: {error}") from error
    expected = dict(built.named_parameters())
    if missing := sorted(set(expected) - set(tensors)):
        raise BundleError(f"tensors: {len(missing)} missing, first {missing[0]!r}")
    if unknown := sorted(set(tensors) - set(expected)):
        raise BundleError(f"tensors: {len(unknown)} that the model does not have, first {unknown[0]!r}")
    for name, parameter in expected.items():
        if tensors[name].shape != parameter.shape:
            raise BundleError(f"{name}: expected shape {tuple(parameter.shape)}, got {tuple(tensors[name].shape)}")
    built.load_state_dict(dict(tensors), assign=True)
    return built.requires_grad_(False)


def apply_delta(parent: Vla, delta: Mapping[str, Tensor]) -> Vla:
    """Raises BundleError for a tensor the parent does not have."""
    merged: dict[str, Tensor] = {name: parameter.detach() for name, parameter in parent.named_parameters()}
    if unknown := sorted(set(delta) - set(merged)):
        raise BundleError(f"delta: {unknown[0]!r} is not a tensor of the parent")
    merged.update(delta)
    return build_model({"family": parent.family, "config": parent.config.to_dict()}, merged)


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
