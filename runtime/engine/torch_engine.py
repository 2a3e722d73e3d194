"""The torch engine: a bundle's tensors assigned into a model built without memory, so that nothing is random."""

from __future__ import annotations

import numpy as np
import torch

from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.engine import Batch
from hotpolicy.runtime.engine.torch_weights import apply_delta, build_model, map_tensors
from hotpolicy.runtime.model.vla import Vla


class TorchEngine:
    """Runs on the CPU in fp32. Threads are the process's (torch.set_num_threads): `serve` sets one, which is the
    fastest for a nano policy beside a busy robot."""

    def __init__(self, model: Vla):
        self.model = model.eval()
        self.schedule = model.schedule()  # of these weights: a delta makes another engine

    @classmethod
    def load(cls, bundle: Bundle) -> TorchEngine:
        return cls(build_model(bundle.manifest.model, map_tensors(bundle)))

    def derive(self, bundle: Bundle) -> TorchEngine:
        """A second model that shares this one's storage wherever the delta says nothing."""
        return TorchEngine(apply_delta(self.model, map_tensors(bundle)))

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
