"""Torch eager against ONNX Runtime on the shipped nano policy: same frames and noise, one thread each, interleaved.

    python bench/onnx.py [--threads 1] [--rounds 200]

Prints a table, median (and fastest) of the rounds, and the ratio of the medians; then what an export and a swap cost.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

# this folder goes last, or `import onnx` would find this file
sys.path.sort(key=lambda place: Path(place).resolve() == Path(__file__).resolve().parent)

import numpy as np
import torch

from hotpolicy.runtime.bundle import Bundle, seal
from hotpolicy.runtime.certificate import made_up_batch
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.engine import Guidance
from hotpolicy.runtime.engine.onnx_engine import OnnxEngine
from hotpolicy.runtime.engine.onnx_session import OnnxOptions
from hotpolicy.runtime.engine.torch_engine import TorchEngine
from hotpolicy.runtime.export import export
from hotpolicy.runtime.transforms import Transforms

SHIPPED = Path(__file__).parent.parent / "launch" / "assets" / "nano"
HEAD = ("expert", "action_", "state_proj", "step_embedding")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of each engine")
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = Bundle.open(SHIPPED)
    with tempfile.TemporaryDirectory() as folder:
        begun = now()
        exported = export([base], Path(folder) / "export")
        export_ms = (now() - begun) * 1000
        begun = now()
        engine = OnnxEngine.open(exported, OnnxOptions(threads=options.threads))
        open_ms = (now() - begun) * 1000
        print(f"nano preset ({base.id}), {options.threads} thread(s) each, {options.rounds} interleaved rounds\n")
        print(f"{'':24}{'torch eager, ms':>20}{'ONNX Runtime, ms':>20}{'ratio':>8}")
        for batch in (1, 4):
            for name, sides in parts(base, engine, batch, options.threads).items():
                show(f"{name}, batch {batch}", measure(sides, options.rounds))
        swaps = [swap_ms(base, engine, Path(folder), seed) for seed in range(5)]
        error = exported.certificate["max_abs_error"]
        print(f"\nexport with certificate {export_ms:.0f} ms, max error {error:.1e} normalised units")
        print(f"open and warm up {open_ms:.0f} ms; head delta to a warm engine {np.median(swaps):.0f} ms (of 5)")


def parts(
    base: Bundle, engine: OnnxEngine, size: int, threads: int
) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Part of an inference -> the two that compute it, on the same inputs."""
    reference, transforms = (
        TorchEngine.load(base, device="cpu", dtype="fp32", threads=threads),
        Transforms.of_chain([base]),
    )
    model, config, schedule = reference.model, reference.model.config, reference.schedule
    batch = made_up_batch(transforms, config.vision.image_size, config.vocabulary, size)
    batch = replace(batch, guidance=None)
    arrays = {name: getattr(batch, name) for name in ("images", "image_mask", "tokens", "token_mask")}
    tensors = [torch.from_numpy(array) for array in arrays.values()]
    state, noise = torch.from_numpy(batch.state), torch.from_numpy(batch.noise)
    seen = engine.prefix.run(arrays)
    fed = {**seen, "state": batch.state, "noise": batch.noise, "steps": np.array(config.steps)}
    fed |= Guidance.none(*batch.noise.shape).arrays()
    prefix = model.prefix(*tensors)
    return {
        "prefix": (lambda: model.prefix(*tensors), lambda: engine.prefix.run(arrays)),
        f"head ({config.steps} steps)": (
            lambda: model.flow(prefix, state, noise, schedule),
            lambda: engine.head.run(fed),
        ),
        "whole": (lambda: reference.infer(batch), lambda: engine.infer(batch)),
    }


@torch.inference_mode()
def measure(sides: tuple[Callable[[], object], Callable[[], object]], rounds: int) -> np.ndarray:
    """(rounds, 2) ms; one call of each in turn, so that both see the same machine."""
    taken = np.zeros((rounds + 5, 2))
    for row in taken:
        for i, call in enumerate(sides):
            begun = now()
            call()
            row[i] = (now() - begun) * 1000
    return taken[5:]


def show(name: str, taken: np.ndarray) -> None:
    middle, least = np.median(taken, axis=0), taken.min(axis=0)
    cells = "".join(f"{f'{m:.2f} ({low:.2f})':>20}" for m, low in zip(middle, least, strict=True))
    print(f"{name:24}{cells}{middle[1] / middle[0]:>8.2f}")


def swap_ms(base: Bundle, engine: OnnxEngine, folder: Path, seed: int) -> float:
    """From a head delta on disk to an engine that has answered once; the prefix session is shared."""
    rng, tensors = np.random.default_rng(seed), base.tensors()
    moved = {
        name: array + rng.normal(0, 1e-3, array.shape).astype(np.float32)
        for name, array in tensors.items()
        if name.startswith(HEAD)
    }
    manifest = base.manifest
    delta = seal(folder, kind="delta", parent=base.id, model=manifest.model, tensors=moved, spec=manifest.spec,
                 transforms=manifest.transforms, provenance={})  # fmt: skip
    begun = now()
    assert engine.derive(delta).prefix is engine.prefix
    return (now() - begun) * 1000


if __name__ == "__main__":
    main()
