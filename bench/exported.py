"""Torch eager against ONNX Runtime in every precision: same frame and noise, the same threads, interleaved.

    python bench/exported.py [--size nano] [--threads 1] [--rounds 200] [--precision fp32 ...]
    python bench/exported.py --size middle --rounds 7 [--folder FOLDER]

nano is the shipped policy; middle (bench/middle.py) has random weights, so its errors say nothing about a task. Prints
medians (and fastest) of the rounds and their ratio to torch's, then what an export and a swap cost. FOLDER keeps the
exports for the next run.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from middle import middle, seal_middle

from hotpolicy.launch.machine import describe_machine
from hotpolicy.launch.nano import SHIPPED
from hotpolicy.runtime.bundle import Bundle, seal
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.engine import Batch
from hotpolicy.runtime.engine.compact import compact
from hotpolicy.runtime.engine.onnx_engine import OnnxEngine
from hotpolicy.runtime.engine.onnx_provider import OnnxOptions
from hotpolicy.runtime.engine.torch_engine import TorchEngine
from hotpolicy.runtime.export import export
from hotpolicy.runtime.graphs.certificate import golden_batch, rows
from hotpolicy.runtime.graphs.exported import Exported
from hotpolicy.runtime.graphs.quantise import BOUNDS
from hotpolicy.runtime.transforms import Transforms
from hotpolicy.runtime.versions.golden import Golden

HEAD = ("expert", "action_", "state_proj", "time_mlp", "step_embedding")
BATCHES = {"nano": (1, 4), "middle": (1,)}
LOOSE = 10.0  # normalised units: random weights are measured, not held to anything, in less than fp32
BARS = {("fp32", "step"): 0.60, ("fp32", "prefix"): 0.90, ("fp32", "whole"): 0.75, ("int8", "whole"): 0.60}
SWAP_S = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=BATCHES, default="nano")
    parser.add_argument("--threads", type=int, default=1, help="of each engine")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--precision", choices=BOUNDS, nargs="+", default=list(BOUNDS))
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        base = Bundle.open(SHIPPED) if options.size == "nano" else seal_middle(folder / "bundles", middle())
        reference = TorchEngine.load(base, device="cpu", dtype="fp32", threads=options.threads)
        count = sum(p.numel() for p in reference.model.parameters())
        print(
            f"{options.size}, {count / 1e6:.1f} M parameters, {options.threads} thread(s) each, {options.rounds} rounds"
        )
        print(
            ", ".join(f"{k} {v}" for k, v in describe_machine().items()), f"load {os.getloadavg()[0]:.1f}", flush=True
        )
        engines = {p: opened(base, folder, p, options.size, options.threads) for p in options.precision}
        for size in BATCHES[options.size]:
            compare(base, reference, engines, size, options.rounds)
        for precision, engine in engines.items():
            taken = [swap_s(base, engine, Path(temporary), seed) for seed in range(3)]
            met = "met" if max(taken) < SWAP_S else "MISSED"
            print(f"{precision}: head delta to a warm engine {max(taken):.2f} s (slowest of 3), bar {SWAP_S:g}: {met}")


def opened(base: Bundle, folder: Path, precision: str, size: str, threads: int) -> OnnxEngine:
    out = folder / f"{size}-{precision}"
    begun = now()
    loose = LOOSE if size == "middle" and precision != "fp32" else None
    exported = Exported.open(out) if out.exists() else export([base], out, precision, bound=loose)
    export_s, begun = now() - begun, now()
    engine = OnnxEngine.open(exported, OnnxOptions(threads=threads))
    mb = {graph: (exported.folder / f"{graph}.onnx.data").stat().st_size / 1e6 for graph in ("prefix", "head")}
    error = exported.certificate
    print(
        f"{precision}: exported or verified in {export_s:.1f} s, opened and warm in {now() - begun:.1f} s, "
        f"prefix {mb['prefix']:.1f} MB, head {mb['head']:.1f} MB, error at most {error['max_abs_error']:.2g}, "
        f"mean {error['mean_abs_error']:.2g} normalised units",
        flush=True,
    )
    return engine


def compare(base: Bundle, reference: TorchEngine, engines: dict[str, OnnxEngine], size: int, rounds: int) -> None:
    golden = Golden.of_chain([base])
    assert golden is not None
    batch = rows(golden_batch(golden, base.manifest.spec, Transforms.of_chain([base])), slice(size))
    sides = {"torch": of_torch(reference, batch), **{p: of_onnx(engine, batch) for p, engine in engines.items()}}
    steps = reference.model.config.steps
    taken: dict[tuple[str, str], list[float]] = {}
    for turn in range(-1, rounds):  # the first warms up
        order = list(sides)[:: 1 if turn % 2 else -1]
        for part in ("prefix", "step", "whole"):
            for side in order:
                begun = now()
                sides[side][part]()
                ms = (now() - begun) * 1000 / (steps if part == "step" else 1)
                if turn >= 0:
                    taken.setdefault((part, side), []).append(ms)
    print(f"\nbatch {size}, {steps} steps; median (fastest) in ms, and the ratio of the medians to torch's")
    print(f"{'':8}" + "".join(f"{side:>24}" for side in sides))
    for part in ("prefix", "step", "whole"):
        cells = []
        for side in sides:
            mine, theirs = taken[part, side], taken[part, "torch"]
            ratio = np.median(mine) / np.median(theirs)
            bar = BARS.get((side, part)) if size == 1 else None
            mark = "" if bar is None else "+" if ratio <= bar else "-"
            cells.append(f"{np.median(mine):.2f} ({min(mine):.2f}) {ratio:.2f}{mark}")
        print(f"{part:8}" + "".join(f"{cell:>24}" for cell in cells))
    print(
        f"load {os.getloadavg()[0]:.1f}; bars: {', '.join(f'{p} {w} {b:g}' for (p, w), b in BARS.items())}\n",
        flush=True,
    )


def of_torch(engine: TorchEngine, batch: Batch) -> dict[str, Callable[[], object]]:
    model = engine.model
    seen = [torch.from_numpy(getattr(batch, name)) for name in ("images", "image_mask", "tokens", "token_mask")]
    state, noise = torch.from_numpy(batch.state), torch.from_numpy(batch.noise)
    guarded = torch.inference_mode()
    prefix, schedule = guarded(model.prefix)(*seen), guarded(model.schedule)()
    return {
        "prefix": lambda: guarded(model.prefix)(*seen),
        "step": lambda: guarded(model.flow)(prefix, state, noise, schedule),
        "whole": lambda: engine.infer(batch),
    }


def of_onnx(engine: OnnxEngine, batch: Batch) -> dict[str, Callable[[], object]]:
    small = compact(batch)
    arrays = {name: getattr(small, name) for name in ("images", "image_mask", "tokens", "token_mask")}
    fed = engine.head_inputs(engine.prefix.run(arrays), small)
    return {
        "prefix": lambda: engine.prefix.run(arrays),
        "step": lambda: engine.head.run(fed, device="cpu"),
        "whole": lambda: engine.infer(batch),
    }


def swap_s(base: Bundle, engine: OnnxEngine, folder: Path, seed: int) -> float:
    """From a head delta on disk to an engine that has answered once; the prefix session is shared."""
    rng = np.random.default_rng(seed)
    moved = {
        name: array + rng.standard_normal(array.shape, np.float32) * np.float32(1e-3)
        for name, array in base.tensors([name for name in base.manifest.tensors if name.startswith(HEAD)]).items()
    }
    manifest = base.manifest
    delta = seal(folder / "deltas", kind="delta", parent=base.id, model=manifest.model, tensors=moved,
                 spec=manifest.spec, transforms=manifest.transforms, provenance={"seed": seed})  # fmt: skip
    begun = now()
    assert engine.derive(delta).prefix is engine.prefix
    return now() - begun


if __name__ == "__main__":
    main()
