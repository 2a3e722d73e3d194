"""The torch engine: a bundle's tensors assigned into a model built without memory, so that nothing is random."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.engine import Batch, Guidance
from hotpolicy.runtime.engine.compact import compact
from hotpolicy.runtime.engine.torch_graphs import CudaRecorder, Inputs, Recordings
from hotpolicy.runtime.engine.torch_place import Place, TorchOptions
from hotpolicy.runtime.engine.torch_traced import Traced, Version, traced
from hotpolicy.runtime.engine.torch_weights import Weights, build_model, map_tensors
from hotpolicy.runtime.model.guided import Promise
from hotpolicy.runtime.model.vla import Vla

BUCKET = 64  # tokens: on a GPU text is as long as a multiple of this, so that few shapes are recorded


class TorchEngine:
    """One version of the weights at its place, with what depends on nothing else computed once.

    All its computing, from the first golden observation to the last request, is done by one thread of its own: torch
    keeps a pool of threads for every thread that computes, and a CUDA graph is replayed where it was recorded. The
    first answer at a shape warms it up (and on CUDA records it); a version is asked for its golden or blank
    observations before it may go live, and the server asks the live one before it is ready.

    Threads: one for a small model (two made nano's chunk 3.1 times as slow), one per core for others (two took 0.60 of
    one's time at 271 M parameters): bench/engine.py. All that CUDA needs is written and was never run."""

    guidable: ClassVar[bool] = True

    def __init__(self, model: Vla, options: TorchOptions | None = None, place: Place | None = None):
        """`place` is that of the version this one is a delta on. Raises ConfigError for a device that is not there."""
        place = place or Place.choose(options or TorchOptions(), model)
        self._begin(Weights.of(place.settle(model.eval())), place, None)

    def _begin(self, weights: Weights, place: Place, code: Traced | None) -> None:
        self.place, self._weights, self._code = place, weights, code
        self._thread = ThreadPoolExecutor(1, "torch-engine", torch.set_num_threads, (self.place.threads,))
        self._schedule: Any = None
        self._version: Version | None = None
        self._recordings: Recordings | None = None
        if self.place.device.type == "cuda":
            self._recordings = Recordings(self.model, self._thread.submit(self.model.schedule).result(), CudaRecorder())

    @classmethod
    def load(cls, bundle: Bundle, **given: Any) -> TorchEngine:
        """A full bundle, with TorchOptions by name. Raises BundleError, ConfigError."""
        options = TorchOptions(**given)
        return cls(build_model(bundle.manifest.model, map_tensors(bundle)), options)

    def derive(self, bundle: Bundle) -> TorchEngine:
        """An engine that shares this one's storage wherever the delta says nothing, and its code."""
        engine = TorchEngine.__new__(TorchEngine)
        engine._begin(self._weights.changed(map_tensors(bundle), self.place), self.place, self._code)
        return engine

    @property
    def model(self) -> Vla:
        """A model of these weights; made when it is asked for, because a chunk that is one call needs none."""
        return self._weights.model

    def infer(self, batch: Batch) -> np.ndarray:
        """(batch, horizon, joints) float32, normalised. May be called from any thread; one at a time computes."""
        return self._thread.submit(self._infer, batch).result()

    @torch.inference_mode()
    def _infer(self, batch: Batch) -> np.ndarray:
        if self._recordings is not None:
            actions = self._recordings.compute(tuple(tensor.to(self.place.device) for tensor in even(batch)))
        elif (version := self._in_one_call(batch)) is not None:
            actions = version.compute(even(batch, 1))
        else:
            *seen, state, noise = _tensors(batch)
            promise = None if batch.guidance is None else _promise(batch.guidance)
            if self._schedule is None:  # of these weights: a delta makes an engine, and a schedule, of its own
                self._schedule = self.model.schedule()
            actions = self.model.flow(self.model.prefix(*seen), state, noise, self._schedule, promise)
        return np.asarray(actions.float().cpu().numpy())

    def _in_one_call(self, batch: Batch) -> Version | None:
        """This engine's, where a chunk is one call. A configuration's first batch is the example for its code."""
        if self._version is None and self.place.traced:
            self._code = self._code or traced(self.model, even(batch, 1))
            if self._code is None:
                self.place = replace(self.place, traced=False)
            else:
                self._version = Version(self._code, tuple(self._weights.tensors.values()))
        return self._version


def even(batch: Batch, bucket: int = BUCKET) -> Inputs:
    """A batch in one of few shapes: without the camera slots that are absent in every row, with text no longer than the
    bucket that holds what is used, and with guidance, be it none. Chosen here, where masks are numpy's, because a GPU
    would have to wait."""
    small = compact(batch, bucket)
    return *_tensors(small), *_promise(small.guidance or Guidance.none(*small.noise.shape))


def _tensors(batch: Batch) -> tuple[Tensor, ...]:
    arrays = (batch.images, batch.image_mask, batch.tokens, batch.token_mask, batch.state, batch.noise)
    return tuple(torch.from_numpy(array) for array in arrays)


def _promise(guidance: Guidance) -> Promise:
    return Promise(*map(torch.from_numpy, (guidance.previous, guidance.weight, guidance.limit)))
