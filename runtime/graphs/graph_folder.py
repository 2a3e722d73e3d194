"""The content of an exported folder: two graphs with their weights beside them, side files, what the manifest says."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker

from hotpolicy.runtime import durable
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.digest import file_sha256
from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.graphs.exported import KIND, SCHEMA, GraphName, prefix_digest
from hotpolicy.runtime.graphs.graph import OPSET, Graph, external_tensor
from hotpolicy.runtime.graphs.quantise import Plan, encode
from hotpolicy.runtime.model import graphs as graphs_of
from hotpolicy.runtime.tokenizer import Inherited
from hotpolicy.runtime.transforms import Transforms
from hotpolicy.runtime.versions.golden import FILE as GOLDEN
from hotpolicy.runtime.versions.manifest import TensorInfo

BATCH = 8  # robots asked for at once that a compiled graph is ready for
PAGE = 4096  # bytes; a tensor that begins on one can be mapped
LINE = 64  # bytes, where a smaller one begins
TOOLS = ("hotpolicy", "torch", "onnx", "onnxruntime", "numpy")


def write_graphs(
    folder: Path, chain: Sequence[Bundle], tensors: Mapping[str, np.ndarray], config: Any, plan: Plan
) -> dict[str, Any]:
    """The two graphs, their data and side files into an empty folder -> the manifest's content, without a certificate.
    `config` is the model family's own. Raises BundleError for a graph that is not valid ONNX, and for numbers too large
    for the form that the plan gives them."""
    tip = chain[-1]
    made = graphs_of(tip.manifest.model["family"])
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
    with durable.naming(data), data.open("wb") as file:
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
