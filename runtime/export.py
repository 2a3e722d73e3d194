"""A bundle as ONNX: two graphs with their weights beside them, a manifest, and a certificate that they equal torch.

The folder appears whole or not at all, and only when the certificate holds.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker

from hotpolicy.runtime import durable
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.certificate import TOLERANCE, Certificate, certify, golden_batch, made_up_batch
from hotpolicy.runtime.chain import resolve
from hotpolicy.runtime.digest import file_sha256
from hotpolicy.runtime.engine.onnx_engine import OnnxEngine
from hotpolicy.runtime.engine.onnx_session import OnnxOptions
from hotpolicy.runtime.engine.torch_engine import TorchEngine
from hotpolicy.runtime.engine.torch_place import TorchOptions
from hotpolicy.runtime.engine.torch_weights import build_model, tensors_from_numpy
from hotpolicy.runtime.errors import BundleError, ConfigError
from hotpolicy.runtime.exported import KIND, SCHEMA, Exported, GraphName, prefix_digest, to_json
from hotpolicy.runtime.golden import FILE as GOLDEN
from hotpolicy.runtime.golden import Golden
from hotpolicy.runtime.graph import OPSET, Graph, external_tensor
from hotpolicy.runtime.manifest import TensorInfo
from hotpolicy.runtime.model import graphs as graphs_of
from hotpolicy.runtime.tokenizer import Inherited
from hotpolicy.runtime.transforms import Transforms

PAGE = 4096  # bytes; a tensor that begins on one can be mapped
TOOLS = ("hotpolicy", "torch", "onnx", "onnxruntime", "numpy")


def export(chain: Sequence[Bundle], out: Path | str, tolerance: float = TOLERANCE) -> Exported:
    """Export the version at the end of a chain (a full bundle, then deltas) into the new folder `out`.
    `tolerance` is in normalised action units. Raises ConfigError when `out` is there already or cannot be written,
    BundleError when the chain is not whole or not in float32, or ONNX Runtime differs from torch; then nothing is
    left behind."""
    out = Path(out)
    if out.exists():
        raise ConfigError(f"out: expected a folder that does not exist, {out} does")
    _check_precision(chain)
    tensors = resolve(chain)
    exact = TorchOptions(device="cpu", dtype="fp32")
    reference = TorchEngine(build_model(chain[-1].manifest.model, tensors_from_numpy(tensors)), exact)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=".export-", dir=out.parent))
    except OSError as error:
        raise ConfigError(f"out: {out.parent} cannot be written: {error.strerror}") from error
    try:
        content = _write_graphs(fresh, chain, tensors, reference)
        certificate = _certify(_open_unsigned(fresh, chain, content), chain, reference, tolerance)
        durable.write_file(fresh / "manifest.json", to_json({**content, "certificate": certificate.to_dict()}))
        fresh.chmod(0o755)  # mkdtemp made it private
        durable.sync_folder(fresh)
        durable.settle_folder(fresh, out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # gone already after a rename
    return Exported.open(out)


def _check_precision(chain: Sequence[Bundle]) -> None:
    """The graphs compute in fp32, and deltas are put into them byte for byte: widening would be another version."""
    for bundle in chain:
        for name, info in bundle.manifest.tensors.items():
            if info.dtype != "F32":
                raise BundleError(
                    f"{bundle.id}: tensor {name}: ONNX export is for float32 versions, this one is {info.dtype}; "
                    "serve it with the torch engine"
                )


def _write_graphs(
    folder: Path, chain: Sequence[Bundle], tensors: Mapping[str, np.ndarray], reference: TorchEngine
) -> dict[str, Any]:
    """The two graphs and their data -> the manifest's content, without a certificate."""
    config, tip = reference.model.config, chain[-1]
    made = graphs_of(reference.model.family)
    graphs: dict[GraphName, Graph] = {"prefix": made.prefix_graph(config), "head": made.head_graph(config)}
    infos: dict[str, TensorInfo] = {}
    for bundle in chain:
        infos.update(bundle.manifest.tensors)
    places: dict[str, GraphName | None] = dict.fromkeys(infos)
    for graph_name, graph in graphs.items():
        places.update(dict.fromkeys(graph.weights, graph_name))
    prefix = prefix_digest(tip.manifest.model, infos, places)
    for graph_name, graph in graphs.items():
        _write_graph(folder, graph_name, graph, tensors, {"prefix": prefix, "bundle": tip.digest})
    _copy_side_files(folder, chain)
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "bundle": tip.manifest.content(),
        "chain": [bundle.id for bundle in chain],
        "prefix": prefix,
        "tensors": {
            name: {"graph": places[name], "shape": list(info.shape), "sha256": info.sha256}
            for name, info in infos.items()
        },
        "files": {path.name: file_sha256(path) for path in sorted(folder.iterdir())},
        "precision": "fp32",
        "opset": OPSET,
        "tools": {**{name: _version(name) for name in TOOLS}, "python": platform.python_version()},
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
        for weight in graph.weights:
            array = tensors[weight]
            file.seek(-(-file.tell() // PAGE) * PAGE)
            weights.append(external_tensor(weight, array.shape, data.name, file.tell(), array.nbytes))
            file.write(array.tobytes())
    durable.sync_file(data)
    durable.write_file(folder / f"{name}.onnx", graph.to_bytes(weights, metadata))
    try:
        onnx.checker.check_model(folder / f"{name}.onnx", full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BundleError(f"{name}.onnx: {str(error).splitlines()[0]}") from error


def _open_unsigned(folder: Path, chain: Sequence[Bundle], content: Mapping[str, Any]) -> OnnxEngine:
    """What is to be certified, on the CPU whatever else there is: torch's side of the comparison is there too."""
    return OnnxEngine.open(Exported(folder, content, chain[-1]), OnnxOptions(provider="cpu"))


def _certify(engine: OnnxEngine, chain: Sequence[Bundle], reference: TorchEngine, tolerance: float) -> Certificate:
    manifest, config = chain[-1].manifest, reference.model.config
    transforms, golden = Transforms.of_chain(chain), Golden.of_chain(chain)
    batches = [made_up_batch(transforms, config.vision.image_size, config.vocabulary)]
    if golden:
        batches.append(golden_batch(golden, manifest.spec, transforms))
    return certify(reference, engine, manifest.spec, transforms, batches, golden=len(golden or ()), tolerance=tolerance)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # a source tree that was not installed
        return "unknown"
