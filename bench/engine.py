"""One chunk of actions through the torch engine on the CPU, by number of threads and by precision.

    python bench/engine.py [--rounds 5] [--threads 1 2] [--out engine.json]

The shipped nano policy, and a pi0 of about 270 M random parameters (3 camera slots of 224x224, one without a camera, 20
of 48 places for text in use). Engines take turns in one process, each on its own thread; fastest and median of each.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from savings import mid_size

from hotpolicy.launch.nano import SHIPPED
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.engine import Batch
from hotpolicy.runtime.engine.torch_engine import TorchEngine
from hotpolicy.runtime.engine.torch_place import TorchOptions, native_bf16
from hotpolicy.runtime.engine.torch_weights import build_model, map_tensors
from hotpolicy.runtime.model.pi0 import Pi0
from hotpolicy.runtime.model.vla import Vla


def frame(model: Pi0, image_mask: list[bool], words: int, used: int) -> Batch:
    draw, config = np.random.default_rng(0), model.config
    size = config.vision.image_size
    return Batch(
        images=draw.integers(0, 256, (1, len(image_mask), size, size, 3), np.uint8),
        image_mask=np.array([image_mask]),
        tokens=draw.integers(1, config.vocabulary, (1, words)),
        token_mask=np.arange(words)[None] < used,
        state=draw.standard_normal((1, config.action_dim), np.float32),
        noise=draw.standard_normal((1, config.horizon, config.action_dim), np.float32),
    )


def subjects() -> dict[str, tuple[Vla, Batch, int]]:
    """Model, frame and how many of it make one measurement."""
    bundle = Bundle.open(SHIPPED)
    nano = build_model(bundle.manifest.model, map_tensors(bundle))
    assert isinstance(nano, Pi0)
    torch.manual_seed(0)
    mid = Pi0(mid_size(pi05=False)).requires_grad_(False)
    return {
        "nano (1.2 M)": (nano, frame(nano, [True], 8, 4), 20),
        "pi0 (271 M)": (mid, frame(mid, [True, True, False], 48, 20), 1),
    }


def measure(threads: list[int], rounds: int) -> list[dict[str, Any]]:
    rows = []
    for name, (model, batch, times) in subjects().items():
        engines = {
            (dtype, count): TorchEngine(model, TorchOptions("cpu", dtype, count))
            for dtype in ("fp32", "bf16")
            for count in threads
        }
        taken: dict[tuple[str, int], list[float]] = {which: [] for which in engines}
        for engine in engines.values():
            engine.infer(batch)
        for _ in range(rounds):
            for which, engine in engines.items():
                before = time.perf_counter()
                for _ in range(times):
                    engine.infer(batch)
                taken[which].append(1e3 * (time.perf_counter() - before) / times)
        for (dtype, count), ms in taken.items():
            rows.append(
                {
                    "model": name,
                    "dtype": dtype,
                    "threads": count,
                    "fastest_ms": min(ms),
                    "median_ms": statistics.median(ms),
                    "ratio": min(ms) / min(taken["fp32", threads[0]]),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    rows = measure(arguments.threads, arguments.rounds)
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    print(f"bf16 native: {native_bf16()}")
    print("| | precision | threads | fastest (median), ms | ratio |\n|---|---|--:|--:|--:|")
    for row in rows:
        timed = f"{row['fastest_ms']:.1f} ({row['median_ms']:.1f})"
        print(f"| {row['model']} | {row['dtype']} | {row['threads']} | {timed} | {row['ratio']:.2f} |")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
