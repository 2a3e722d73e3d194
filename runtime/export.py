"""A bundle as ONNX: two graphs with their weights beside them, a manifest, and a certificate that they equal torch.

The folder appears whole or not at all, and only when the certificate holds.
"""

from __future__ import annotations

import logging
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker

from hotpolicy.runtime import durable
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.calibration import by_harm, ranges
from hotpolicy.runtime.certificate import Certificate, Frames, certify, check, made_up_batch
from hotpolicy.runtime.chain import resolve
from hotpolicy.runtime.digest import file_sha256
from hotpolicy.runtime.engine.onnx_engine import OnnxEngine
from hotpolicy.runtime.engine.onnx_provider import OnnxOptions
from hotpolicy.runtime.engine.torch_engine import TorchEngine
from hotpolicy.runtime.engine.torch_place import TorchOptions
from hotpolicy.runtime.engine.torch_weights import build_model, tensors_from_numpy
from hotpolicy.runtime.errors import BundleError, ConfigError
from hotpolicy.runtime.exported import KIND, SCHEMA, Exported, GraphName, prefix_digest, to_json
from hotpolicy.runtime.golden import FILE as GOLDEN
from hotpolicy.runtime.golden import Golden
from hotpolicy.runtime.graph import OPSET, Graph, external_tensor
from hotpolicy.runtime.hold import Hold
from hotpolicy.runtime.manifest import TensorInfo
from hotpolicy.runtime.messages import Observation
from hotpolicy.runtime.model import graphs as graphs_of
from hotpolicy.runtime.quantise import BOUNDS, Form, Plan, Precision, check_precision, encode
from hotpolicy.runtime.tokenizer import Inherited
from hotpolicy.runtime.transforms import Transforms

log = logging.getLogger(__name__)
BATCH = 8  # robots asked for at once that a compiled graph is ready for
PAGE = 4096  # bytes; a tensor that begins on one can be mapped
LINE = 64  # bytes, where a smaller one begins
TOOLS = ("hotpolicy", "torch", "onnx", "onnxruntime", "numpy")


def export(
    chain: Sequence[Bundle],
    out: Path | str,
    precision: str = "fp32",
    bound: float | None = None,
    recorded: Sequence[Observation] = (),
) -> Exported:
    """Export the version at the end of a chain (a full bundle, then deltas) into the new folder `out`. `bound` is the
    largest error allowed, in normalised action units; left out, it is the precision's own (`quantise.BOUNDS`).
    `recorded` are frames to measure it on, and to calibrate int8-static with, beside the golden ones.

    An int8 export beyond its bound is tried again with those layers kept in fp32 that harm most when they alone are
    quantised. Raises ConfigError when `out` is there already or cannot be written, BundleError when the chain is not
    whole, or ONNX Runtime differs from torch by more than the bound; then nothing is left behind."""
    out, kind = Path(out), check_precision(precision)
    if out.exists():
        raise ConfigError(f"out: expected a folder that does not exist, {out} does")
    job = _Job.of(chain, kind, BOUNDS[kind] if bound is None else bound, recorded)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=".export-", dir=out.parent))
    except OSError as error:
        raise ConfigError(f"out: {out.parent} cannot be written: {error.strerror}") from error
    held = Hold(fresh)  # or whoever tidies up would take it for what a crash left
    try:
        content, certificate = job.write_within_bound(fresh)
        durable.write_file(fresh / "manifest.json", to_json({**content, "certificate": certificate.to_dict()}))
        fresh.chmod(0o755)  # mkdtemp made it private
        durable.sync_folder(fresh)
        durable.settle_folder(fresh, out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # gone already after a rename
        held.release()
    return Exported.open(out)


@dataclass(frozen=True)
class _Job:
    """One export: what is exported, torch's side of the comparison, and how large the distance may be."""

    chain: Sequence[Bundle]
    tensors: Mapping[str, np.ndarray]
    reference: TorchEngine
    transforms: Transforms
    frames: Frames
    precision: Precision
    bound: float

    @classmethod
    def of(cls, chain: Sequence[Bundle], precision: Precision, bound: float, recorded: Sequence[Observation]) -> _Job:
        tensors, manifest = resolve(chain), chain[-1].manifest
        # Widened: a graph computes in fp32 what a version has in bf16, and so does what it is compared with.
        exact = TorchOptions(device="cpu", dtype="fp32")
        reference = TorchEngine(build_model(manifest.model, tensors_from_numpy(tensors)), exact)
        transforms, config = Transforms.of_chain(chain), reference.model.config
        made_up = made_up_batch(transforms, config.vision.image_size, config.vocabulary)
        frames = Frames.of(transforms, made_up, manifest.spec, Golden.of_chain(chain), recorded)
        return cls(chain, tensors, reference, transforms, frames, precision, bound)

    def write_within_bound(self, folder: Path) -> tuple[dict[str, Any], Certificate]:
        """-> the manifest's content without its certificate, and that. Raises BundleError."""
        wanted, plan = self.frames.answers(self.reference), self._plan()
        content, certificate = self._attempt(folder, plan, wanted)
        if not certificate.holds and plan.precision.startswith("int8"):
            for more in self._to_keep(plan, [name for name, form in _products(content).items() if form == "int8"]):
                content, certificate = self._attempt(folder, replace(plan, keep=plan.keep | more), wanted)
                if certificate.holds:
                    break
        check(certificate)
        return content, certificate

    def _plan(self) -> Plan:
        if self.precision == "fp32":
            return Plan()
        products = {name for name, array in self.tensors.items() if name.endswith(".weight") and array.ndim == 2}
        plan = Plan(self.precision, frozenset(self.reference.model.precise() & products))
        if self.precision != "int8-static":
            return plan
        made = graphs_of(self.reference.model.family)
        config = self.reference.model.config
        loose = replace(plan, precision="int8")
        forms = {**made.prefix_graph(config, loose).weights, **made.head_graph(config, loose).weights}
        met = [name for name, form in forms.items() if form == "int8"]
        return replace(plan, ranges=ranges(self.reference, self.frames.seen, met))

    def _to_keep(self, plan: Plan, weights: Sequence[str]) -> Iterator[frozenset[str]]:
        """The worst block, the two worst, the four worst, ...: at most half of them."""
        log.info("beyond its bound; looking for the layers that harm most")
        worst = by_harm(self.reference, self.frames.seen[:1], plan, weights)
        count = 1
        while count <= len(worst) // 2:
            yield frozenset().union(*worst[:count])
            count *= 2

    def _attempt(self, folder: Path, plan: Plan, wanted: np.ndarray) -> tuple[dict[str, Any], Certificate]:
        for old in folder.iterdir():
            old.unlink()
        content = _write_graphs(folder, self.chain, self.tensors, self.reference, plan)
        # on the CPU whatever else there is: torch's side of the comparison is there too
        engine = OnnxEngine.open(Exported(folder, content, self.chain[-1]), OnnxOptions(provider="cpu"))
        spec = self.chain[-1].manifest.spec
        return content, certify(wanted, engine, self.frames, spec, self.transforms, self.precision, self.bound)


def _products(content: Mapping[str, Any]) -> dict[str, Form]:
    return {name: t["form"] for name, t in content["tensors"].items() if t["graph"]}


def _write_graphs(
    folder: Path, chain: Sequence[Bundle], tensors: Mapping[str, np.ndarray], reference: TorchEngine, plan: Plan
) -> dict[str, Any]:
    """The two graphs and their data -> the manifest's content, without a certificate."""
    config, tip = reference.model.config, chain[-1]
    made = graphs_of(reference.model.family)
    graphs: dict[GraphName, Graph] = {"prefix": made.prefix_graph(config, plan), "head": made.head_graph(config, plan)}
    infos: dict[str, TensorInfo] = {}
    for bundle in chain:
        infos.update(bundle.manifest.tensors)
    records: dict[str, dict[str, Any]] = {
        name: {"graph": None, "form": None, "shape": list(info.shape), "dtype": info.dtype, "sha256": info.sha256}
        for name, info in infos.items()
    }
    for graph_name, graph in graphs.items():
        for weight, form in graph.weights.items():
            records[weight].update(graph=graph_name, form=form)
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": KIND,
        "bundle": tip.manifest.content(),
        "chain": [bundle.id for bundle in chain],
        "tensors": records,
        "precision": plan.precision,
        "keep": sorted(plan.keep & {name for name, record in records.items() if record["graph"]}),
        "ranges": {name: list(known) for name, known in plan.ranges.items()},
        "inputs": {name: {key: list(dims) for key, dims in graph.inputs.items()} for name, graph in graphs.items()},
        "dims": _dims(Transforms.of_chain(chain), config),
        "opset": OPSET,
        "tools": {**{name: _version(name) for name in TOOLS}, "python": platform.python_version()},
    }
    content["prefix"] = prefix_digest(content, infos)
    for graph_name, graph in graphs.items():
        _write_graph(folder, graph_name, graph, tensors, {"prefix": content["prefix"], "bundle": tip.digest})
    _copy_side_files(folder, chain)
    content["files"] = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    return content


def _dims(transforms: Transforms, config: Any) -> dict[str, list[int]]:
    """What varies in the inputs' shapes -> the least, the usual and the most."""
    words, cameras, each = transforms.tokenizer.max_tokens, len(transforms.cameras), config.vision.tokens
    usual = cameras * each + words
    return {
        "batch": [1, 1, BATCH],
        "cameras": [1, cameras, transforms.slots],
        "length": [1, words, words],
        "prefix": [each + 1, usual, transforms.slots * each + words],
    }


def _copy_side_files(folder: Path, chain: Sequence[Bundle]) -> None:
    """What the transforms read their instructions with, and what a server tries the policy on before it serves."""
    files, names = Inherited.of_chain(chain), [chain[-1].manifest.transforms["tokenizer"].get("file")]
    names += [GOLDEN] if any(GOLDEN in bundle.manifest.files for bundle in chain) else []
    for name in names:
        if name is not None and files is not None:
            durable.copy_file(files.file(name), folder / name)


def _write_graph(
    folder: Path, name: GraphName, graph: Graph, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    data = folder / f"{name}.onnx.data"
    weights = []
    with data.open("wb") as file:
        for weight, form in graph.weights.items():
            for stored, array in encode(weight, tensors[weight], form).items():
                step = PAGE if array.nbytes >= PAGE else LINE
                file.seek(-(-file.tell() // step) * step)
                weights.append(external_tensor(stored, array, data.name, file.tell()))
                file.write(array.data)
    durable.sync_file(data)
    durable.write_file(folder / f"{name}.onnx", graph.to_bytes(weights, metadata))
    try:
        onnx.checker.check_model(folder / f"{name}.onnx", full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BundleError(f"{name}.onnx: {str(error).splitlines()[0]}") from error


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # a source tree that was not installed
        return "unknown"
