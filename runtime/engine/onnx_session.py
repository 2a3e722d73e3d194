"""One ONNX Runtime session: one graph on its provider, with some of its weights replaced."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort

from hotpolicy.runtime.engine.onnx_provider import OnnxOptions, Shapes, provider_options, this_machine
from hotpolicy.runtime.engine.processor import overflows_int8, threads_for
from hotpolicy.runtime.errors import BundleError, ConfigError, EngineFault
from hotpolicy.runtime.graphs.exported import Exported, GraphName
from hotpolicy.runtime.graphs.quantise import encode
from hotpolicy.runtime.versions.manifest import TensorInfo, canonical

# What ONNX Runtime raises for a graph or an input it cannot take; its classes have no public base.
ORT_FAULTS: tuple[type[Exception], ...] = tuple(
    cls for cls in vars(ort.capi.onnxruntime_pybind11_state).values()
    if isinstance(cls, type) and issubclass(cls, Exception)
)  # fmt: skip
BOUND_FAULTS: tuple[type[Exception], ...] = (*ORT_FAULTS, RuntimeError, ValueError)  # a bound run raises plain ones
Value: TypeAlias = Any  # an ort.OrtValue: an array where the provider computes


class Session:
    """A graph with the weights of one version, the exported ones but for those in `changed`. Warm when it is made."""

    def __init__(
        self,
        exported: Exported,
        graph: GraphName,
        tensors: Mapping[str, TensorInfo],
        changed: Mapping[str, np.ndarray],
        options: OnnxOptions,
    ):
        """`tensors` are all parameters of the version, `changed` holds those that differ, as their bundle has them.
        Raises BundleError when ONNX Runtime cannot load it, ConfigError when the provider does not come up."""
        path, provider = exported.graph(graph), options.chosen()
        chosen = provider_options(
            provider,
            exported.content["files"][path.name],
            weights_digest(exported, graph, tensors),
            exported.precision,
            exported.shapes(graph),
            Path(options.cache) if options.cache is not None else None,
            this_machine(provider),
        )
        self.threads = options.threads or threads_for(sum(math.prod(info.shape) for info in tensors.values()))
        settings = _settings(self.threads, exported.precision)
        self._held = _encoded(exported, graph, changed)  # ONNX Runtime reads them where they are
        if self._held:
            values = [ort.OrtValue.ortvalue_from_numpy(array) for array in self._held.values()]
            settings.add_external_initializers(list(self._held), values)
        try:
            self._session = ort.InferenceSession(str(path), settings, providers=[(provider.name, chosen)])
        except ORT_FAULTS as error:
            raise BundleError(f"{path}: ONNX Runtime cannot load it: {_first_line(error)}") from error
        if self._session.get_providers()[0] != provider.name:  # it would go on, on the CPU, with only a warning
            raise ConfigError(f"provider: {provider.name} is installed but does not start on this machine")
        self.inputs = [entry.name for entry in self._session.get_inputs()]
        self.outputs = [output.name for output in self._session.get_outputs()]
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.device = provider.device
        self._warm_up(exported.shapes(graph))

    def run(self, given: Mapping[str, np.ndarray | Value], device: str | None = None) -> dict[str, Value]:
        """Arrays are copied to where they are needed, values are read where they lie. The results lie on `device`,
        or where the provider computes. Raises EngineFault when the inputs do not fit the graph."""
        binding = self._session.io_binding()
        # ONNX Runtime reads them where they are and holds no reference: they must outlive the run
        bound = {
            name: np.ascontiguousarray(given[name]) if isinstance(given[name], np.ndarray) else given[name]
            for name in self.inputs
        }
        try:
            for name, value in bound.items():
                if isinstance(value, np.ndarray):
                    binding.bind_cpu_input(name, value)
                else:
                    binding.bind_ortvalue_input(name, value)
            for name in self.outputs:
                binding.bind_output(name, device or self.device)
            self._session.run_with_iobinding(binding)
            return dict(zip(self.outputs, binding.get_outputs(), strict=True))
        except BOUND_FAULTS as error:
            raise EngineFault(f"ONNX Runtime: {_first_line(error)}") from error

    def _warm_up(self, shapes: Shapes) -> None:
        """One blank frame of the usual shape, so that the first real one finds memory and kernels ready; one step of
        a loop is enough."""
        blank = {"tensor(bool)": np.bool_, "tensor(int64)": np.int64, "tensor(uint8)": np.uint8}
        given: dict[str, np.ndarray] = {}
        for entry in self._session.get_inputs():
            kind, usual = blank.get(entry.type, np.float32), shapes[entry.name][1]
            given[entry.name] = np.ones(usual, kind) if kind is np.bool_ or not usual else np.zeros(usual, kind)
        self.run(given)


def weights_digest(exported: Exported, graph: GraphName, tensors: Mapping[str, TensorInfo]) -> str:
    """Of all parameters that a version has in one graph, and of the form they have there."""
    forms = exported.forms
    mine = {name: (tensors[name].sha256, forms[name]) for name, place in exported.places.items() if place == graph}
    ranges = {name: most for name, most in exported.content["ranges"].items() if name in mine}
    return hashlib.sha256(canonical({"tensors": mine, "ranges": ranges}).encode()).hexdigest()


def _encoded(exported: Exported, graph: GraphName, changed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """In the forms that the export has them in: int8 too is swapped by name."""
    places, forms = exported.places, exported.forms
    found: dict[str, np.ndarray] = {}
    for name, array in changed.items():
        if places[name] == graph:
            found |= encode(name, array, forms[name])
    return found


def _settings(threads: int, precision: str) -> ort.SessionOptions:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    # a thread that spins for its next operation takes the core from the robot's loop and from tuning
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if precision.startswith("int8") and overflows_int8():
        settings.add_session_config_entry(
            "session.x64quantprecision", "1"
        )  # exact, and 1.8 times as slow where not needed
    return settings


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
