"""What real-time chunking adds to the flow of the shipped nano policy, on one thread of the CPU.

    python bench/guidance.py [--rounds 300]

The flow is all that comes after the prefix: eight steps from noise to actions, and guidance touches each. Torch and
ONNX Runtime compute it without guidance, with every row guided, and once more without, which tells how far two equal
things lie apart; and an exported head computes it that has guidance taken out of its loop, because one always has it,
with zeros where nothing is promised. In turn at random, in CPU time of the process, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from hotpolicy.launch.nano import SHIPPED
from hotpolicy.runtime import rtc
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.engine import Guidance
from hotpolicy.runtime.engine.onnx_engine import OnnxEngine
from hotpolicy.runtime.engine.torch_engine import TorchEngine
from hotpolicy.runtime.export import export
from hotpolicy.runtime.graphs.certificate import made_up_batch
from hotpolicy.runtime.model import pi0_graph
from hotpolicy.runtime.model.guided import Promise
from hotpolicy.runtime.transforms import Transforms


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = Bundle.open(SHIPPED)
    with tempfile.TemporaryDirectory() as folder:
        onnx = OnnxEngine.open(export([base], Path(folder) / "export"))
        with without_guidance():
            bare = OnnxEngine.open(export([base], Path(folder) / "bare", bound=1e9))
        for rows in (1, 4):
            show(rows, flows(base, onnx, bare, rows), options.rounds)


def flows(base: Bundle, onnx: OnnxEngine, bare: OnnxEngine, rows: int) -> dict[str, Callable[[], object]]:
    engine = TorchEngine.load(base, device="cpu", threads=1)
    model, config, transforms = engine.model, engine.model.config, Transforms.of_chain([base])
    batch = made_up_batch(transforms, config.vision.image_size, config.vocabulary, rows)
    seen = {name: getattr(batch, name) for name in ("images", "image_mask", "tokens", "token_mask")}
    prefix = model.prefix(*map(torch.from_numpy, seen.values()))
    given = (prefix, torch.from_numpy(batch.state), torch.from_numpy(batch.noise), model.schedule())
    steps = np.array(config.steps)
    fed = {**onnx.prefix.run(seen), "state": batch.state, "noise": batch.noise, "steps": steps}
    none, guidance = Guidance.none(*batch.noise.shape).arrays(), promised(batch.noise).arrays()
    promise = Promise(*map(torch.from_numpy, guidance.values()))
    return {
        "torch, unguided": partial(model.flow, *given),
        "torch, guided": partial(model.flow, *given, promise),
        "torch, unguided again": partial(model.flow, *given),
        "ONNX Runtime, unguided": partial(onnx.head.run, {**fed, **none}),
        "ONNX Runtime, guided": partial(onnx.head.run, {**fed, **guidance}),
        "ONNX Runtime, unguided again": partial(onnx.head.run, {**fed, **none}),
        "ONNX Runtime, no guidance in the graph": partial(bare.head.run, {**fed, **none}),
    }


def promised(noise: np.ndarray) -> Guidance:
    rows, horizon, _ = noise.shape
    weight = np.tile(rtc.weights("exp", 2, horizon - 2, horizon), (rows, 1))
    return Guidance(np.zeros_like(noise), weight, np.full(rows, 10, np.float32))


@contextmanager
def without_guidance() -> Iterator[None]:
    """An exported head whose loop does not know of it; its inputs are there, and unused."""
    with (
        mock.patch.object(pi0_graph, "_bend", lambda body, velocity, *_: velocity),
        mock.patch.object(pi0_graph, "_pulls", lambda g, steps, *_: pi0_graph._times(g, steps)),
    ):
        yield


def show(rows: int, calls: Mapping[str, Callable[[], object]], rounds: int) -> None:
    names, rng = list(calls), np.random.default_rng(0)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for i in rng.permutation(len(names)):  # whoever comes after the other engine finds its caches cold
            begun = time.process_time()
            calls[names[i]]()
            taken[names[i]].append((time.process_time() - begun) * 1000)
    print(f"batch of {rows}: CPU ms, median (fastest) of {rounds} rounds; ratio of the medians to unguided")
    for name, times in taken.items():
        unguided = np.median(taken[name.split(",")[0] + ", unguided"])
        print(f"  {name:40}{np.median(times):8.3f} ({min(times):.3f}){np.median(times) / unguided:8.3f}")


if __name__ == "__main__":
    main()
