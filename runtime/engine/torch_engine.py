"""The torch engine: a bundle's tensors assigned into a model built without memory, so that nothing is random."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.engine import Batch
from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.model.pi0 import Pi0, Pi0Config


class TorchEngine:
    """Runs on the CPU in fp32. Threads are the process's (torch.set_num_threads): `serve` sets one, which is the
    fastest for a nano policy beside a busy robot."""

    def __init__(self, model: Pi0):
        self.model = model.eval()
        self.schedule = model.schedule()  # of these weights: a delta makes another engine

    @classmethod
    def load(cls, bundle: Bundle) -> TorchEngine:
        return cls(build_model(bundle.manifest.model, tensors_from_numpy(bundle.tensors())))

    def derive(self, bundle: Bundle) -> TorchEngine:
        """A second model that shares this one's storage wherever the delta says nothing."""
        return TorchEngine(apply_delta(self.model, tensors_from_numpy(bundle.tensors())))

    @torch.inference_mode()
    def infer(self, batch: Batch) -> np.ndarray:
        prefix = self.model.prefix(
            torch.from_numpy(batch.images),
            torch.from_numpy(batch.image_mask),
            torch.from_numpy(batch.tokens),
            torch.from_numpy(batch.token_mask),
        )
        flowed = self.model.flow(prefix, torch.from_numpy(batch.state), torch.from_numpy(batch.noise), self.schedule)
        return np.asarray(flowed.numpy())


def build_model(model: Mapping[str, object], tensors: Mapping[str, Tensor]) -> Pi0:
    """A manifest's model entry and every one of its tensors -> the model. Raises BundleError for another family,
    a bad configuration, and any tensor that is missing, unknown or of another shape."""
    if model.get("family") != "pi0":
        raise BundleError(f"model.family: expected 'pi0', got {model.get('family')!r}")
    try:
        config = Pi0Config.from_dict(model["config"])  # type: ignore[arg-type]
    except (KeyError, TypeError) as error:
        raise BundleError(f"model.config: {error}") from error
    with torch.device("meta"):
        built = Pi0(config)
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


def apply_delta(parent: Pi0, delta: Mapping[str, Tensor]) -> Pi0:
    """Raises BundleError for a tensor the parent does not have."""
    merged: dict[str, Tensor] = {name: parameter.detach() for name, parameter in parent.named_parameters()}
    if unknown := sorted(set(delta) - set(merged)):
        raise BundleError(f"delta: {unknown[0]!r} is not a tensor of the parent")
    merged.update(delta)
    return build_model({"family": "pi0", "config": parent.config.to_dict()}, merged)


def tensors_from_numpy(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
