"""CUDA graphs: the kernels of one prefix and one flow, recorded once per shape and replayed with one call each.

Launching kernels one by one costs a GPU more than a small model's arithmetic. A recording always reads and writes the
same memory: inputs are copied into it, and the answer is copied out. **Never run on a GPU**: the tests run it on the
CPU with a recorder that replays by computing again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from hotpolicy.runtime.model.guided import Promise
from hotpolicy.runtime.model.vla import Vla

Inputs = tuple[Tensor, ...]  # images, image_mask, tokens, token_mask; state, noise; previous, weight, limit
MOST = 8  # shapes kept; each holds its own activations
WARM = 2  # runs before recording, so that libraries have chosen kernels and taken their memory


class Recorder(Protocol):
    def record(self, compute: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """-> what replays it, and its result, whose tensors every replay writes anew."""


class CudaRecorder:
    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()  # recordings are replayed one at a time: they may share memory

    def record(self, compute: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM):
                compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = compute()
        return graph.replay, result


class Recording:
    """One shape: static inputs, the prefix recorded, and the flow recorded on the prefix's own K/V. Guidance is always
    among the inputs, zeros where there is none: three small kernels a step, and the first guided request after a swap
    finds what the warm-up recorded."""

    def __init__(self, model: Vla, schedule: Any, given: Inputs, recorder: Recorder):
        self._held = tuple(tensor.clone() for tensor in given)
        *seen, state, noise = self._held[:-3]
        promise = Promise(*self._held[-3:])
        self._read, prefix = recorder.record(lambda: model.prefix(*seen, packed=False))
        self._flow, self._actions = recorder.record(lambda: model.flow(prefix, state, noise, schedule, promise))

    def replay(self, given: Inputs) -> Tensor:
        for held, tensor in zip(self._held, given, strict=True):
            held.copy_(tensor)
        self._read()
        self._flow()
        return self._actions.clone()


class Recordings:
    """Of one version of the weights. What was used longest ago goes first."""

    def __init__(self, model: Vla, schedule: Any, recorder: Recorder):
        self._model, self._schedule, self._recorder = model, schedule, recorder
        self._kept: OrderedDict[tuple[torch.Size, ...], Recording] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def compute(self, given: Inputs) -> Tensor:
        key = tuple(tensor.shape for tensor in given)
        if key not in self._kept:
            if len(self._kept) == MOST:
                self._kept.popitem(last=False)
            self._kept[key] = Recording(self._model, self._schedule, given, self._recorder)
        self._kept.move_to_end(key)
        return self._kept[key].replay(given)
