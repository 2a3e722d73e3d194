"""A bundle as ONNX: two graphs with their weights beside them, a manifest, and a certificate that they equal torch.

The folder appears whole or not at all, and only when the certificate holds.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hotpolicy.runtime import durable
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.engine.onnx_engine import OnnxEngine
from hotpolicy.runtime.engine.onnx_provider import OnnxOptions
from hotpolicy.runtime.engine.torch_engine import TorchEngine
from hotpolicy.runtime.engine.torch_place import TorchOptions
from hotpolicy.runtime.engine.torch_weights import build_model, tensors_from_numpy
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.graphs.calibration import by_harm, ranges
from hotpolicy.runtime.graphs.certificate import MADE_UP, Certificate, Frames, certify, check, made_up_batch
from hotpolicy.runtime.graphs.exported import Exported, to_json
from hotpolicy.runtime.graphs.graph_folder import write_graphs
from hotpolicy.runtime.graphs.quantise import BOUNDS, Plan, Precision, check_precision
from hotpolicy.runtime.hold import Hold
from hotpolicy.runtime.messages import Observation
from hotpolicy.runtime.model import graphs as graphs_of
from hotpolicy.runtime.transforms import Transforms
from hotpolicy.runtime.versions.chain import resolve
from hotpolicy.runtime.versions.golden import Golden

log = logging.getLogger(__name__)
BYTES = {"fp32": 4, "fp16": 2, "int8": 1}  # of a number in the graphs


def export(
    chain: Sequence[Bundle],
    out: Path | str,
    precision: str = "fp32",
    bound: float | None = None,
    recorded: Sequence[Observation] = (),
    made_up: int = MADE_UP,
) -> Exported:
    """Export the version at the end of a chain (a full bundle, then deltas) into the new folder `out`. `bound` is the
    largest error allowed, in normalised action units; left out, it is the precision's own (`quantise.BOUNDS`).
    `recorded` are frames to measure it on, and to calibrate int8-static with, beside the golden ones; `made_up` counts
    frames of noise.

    An int8 export beyond its bound is tried again with those layers kept in fp32 that harm most when they alone are
    quantised. Raises ConfigError when `out` is there already or cannot be written, or nobody wrote graphs for the
    model's family; BundleError when the chain is not whole, or ONNX Runtime differs from torch by more than the bound.
    Then nothing is left behind."""
    out, kind = Path(out), check_precision(precision)
    if out.exists():
        raise ConfigError(f"out: expected a folder that does not exist, {out} does")
    job = _Job.of(chain, kind, BOUNDS[kind] if bound is None else bound, recorded, made_up)
    try:
        numbers = sum(value.size for value in job.tensors.values())
        durable.require_room(out.parent, numbers * BYTES[kind.partition("-")[0]])
        out.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=".export-", dir=out.parent))
    except OSError as error:
        raise ConfigError(f"out: cannot be written: {durable.refusal(error, out.parent)}") from error
    held = Hold(fresh)  # or whoever tidies up would take it for what a crash left
    try:
        content, certificate = job.write_within_bound(fresh)
        durable.write_file(fresh / "manifest.json", to_json({**content, "certificate": certificate.to_dict()}))
        fresh.chmod(0o755)  # mkdtemp made it private
        durable.sync_folder(fresh)
        durable.settle_folder(fresh, out)
    except OSError as error:
        raise ConfigError(f"out: cannot be written: {durable.refusal(error, out)}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # gone already after a rename
        held.release()
    return Exported.open(out)


@dataclass(frozen=True)
class _Job:
    """One export: what is exported, torch's answers to compare with, and how far from them it may be. Torch's model
    itself is made when it is needed and then goes: a real pi0 widened to fp32 takes as much memory as its export."""

    chain: Sequence[Bundle]
    tensors: Mapping[str, np.ndarray]
    config: Any  # the model family's own
    transforms: Transforms
    frames: Frames
    wanted: np.ndarray  # torch's answers
    plan: Plan
    bound: float

    @classmethod
    def of(
        cls, chain: Sequence[Bundle], precision: Precision, bound: float, recorded: Sequence[Observation], made_up: int
    ) -> _Job:
        graphs_of(chain[-1].manifest.model["family"])  # before a large model is read for nothing
        tensors, manifest, transforms = resolve(chain), chain[-1].manifest, Transforms.of_chain(chain)
        reference = _reference(chain, tensors)
        config = reference.model.config
        noise = made_up_batch(transforms, config.vision.image_size, config.vocabulary, made_up)
        frames = Frames.of(transforms, noise, manifest.spec, Golden.of_chain(chain), recorded)
        plan = _plan(precision, reference, tensors, frames)
        return cls(chain, tensors, config, transforms, frames, frames.answers(reference), plan, bound)

    def write_within_bound(self, folder: Path) -> tuple[dict[str, Any], Certificate]:
        """-> the manifest's content without its certificate, and that. Raises BundleError."""
        content, certificate = self._attempt(folder, self.plan)
        if not certificate.holds and self.plan.precision.startswith("int8"):
            log.info("error %.3g, beyond its bound: which layers harm most?", certificate.max_abs_error)
            for more in self._to_keep([name for name, t in content["tensors"].items() if t["form"] == "int8"]):
                content, certificate = self._attempt(folder, replace(self.plan, keep=self.plan.keep | more))
                if certificate.holds:
                    break
        check(certificate)
        return content, certificate

    def _to_keep(self, weights: Sequence[str]) -> list[frozenset[str]]:
        """The worst block, the two worst, the four worst, ...: at most half of them."""
        worst = by_harm(_reference(self.chain, self.tensors), self.frames.seen[:1], self.plan, weights)
        counts = itertools.takewhile(lambda count: count <= len(worst) // 2, (2**power for power in itertools.count()))
        return [frozenset().union(*worst[:count]) for count in counts]

    def _attempt(self, folder: Path, plan: Plan) -> tuple[dict[str, Any], Certificate]:
        for old in folder.iterdir():
            old.unlink()
        content = write_graphs(folder, self.chain, self.tensors, self.config, plan)
        # on the CPU whatever else there is: torch's side of the comparison was there too
        engine = OnnxEngine.open(Exported(folder, content, self.chain[-1]), OnnxOptions(provider="cpu"))
        spec = self.chain[-1].manifest.spec
        return content, certify(self.wanted, engine, self.frames, spec, self.transforms, plan.precision, self.bound)


def _reference(chain: Sequence[Bundle], tensors: Mapping[str, np.ndarray]) -> TorchEngine:
    """Widened to fp32, whatever the version is kept in: the graphs are compared with what its numbers mean. Not
    traced: layers are watched and rounded meanwhile (calibration.py)."""
    exact = TorchOptions(device="cpu", dtype="fp32", traced=False)
    return TorchEngine(build_model(chain[-1].manifest.model, tensors_from_numpy(tensors)), exact)


def _plan(precision: Precision, reference: TorchEngine, tensors: Mapping[str, np.ndarray], frames: Frames) -> Plan:
    if precision == "fp32":
        return Plan()
    model = reference.model
    products = {name for name, array in tensors.items() if name.endswith(".weight") and array.ndim == 2}
    plan = Plan(precision, frozenset(model.precise() & products))
    if precision != "int8-static":
        return plan
    made, loose = graphs_of(model.family), replace(plan, precision="int8")
    forms = {**made.prefix_graph(model.config, loose).weights, **made.head_graph(model.config, loose).weights}
    met = [name for name, form in forms.items() if form == "int8"]
    return replace(plan, ranges=ranges(reference, frames.seen, met))
