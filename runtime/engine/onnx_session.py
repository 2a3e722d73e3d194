"""One ONNX Runtime session: which provider it runs on, how many threads it has, which weights were replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from hotpolicy.runtime.errors import BundleError, ConfigError, EngineFault
from hotpolicy.runtime.exported import Exported, GraphName

# What ONNX Runtime raises for a graph or an input it cannot take; its classes have no public base.
ORT_FAULTS = tuple(
    cls for cls in vars(ort.capi.onnxruntime_pybind11_state).values()
    if isinstance(cls, type) and issubclass(cls, Exception)
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Provider:
    """An execution provider. `unasked`: take it where it is there, without being told to."""

    name: str
    unasked: bool = True
    options: tuple[tuple[str, str], ...] = ()


# In order of preference. TensorRT's engine cache does not look at weights: two versions of one policy would share an
# entry, and the second would move the arm as the first. So it stays off, and because building engines then takes
# minutes at every swap, TensorRT is used only when asked for.
PROVIDERS = {
    "tensorrt": Provider("TensorrtExecutionProvider", unasked=False, options=(("trt_engine_cache_enable", "0"),)),
    "cuda": Provider("CUDAExecutionProvider"),
    "cpu": Provider("CPUExecutionProvider"),
}


@dataclass(frozen=True, slots=True)
class OnnxOptions:
    provider: str | None = None  # of PROVIDERS; None: the first that is there
    threads: int = 1  # per operation; one is the fastest for a nano policy beside a busy robot

    def chosen(self) -> Provider:
        """Raises ConfigError when the provider asked for is unknown or not in this build of ONNX Runtime."""
        there = [name for name, provider in PROVIDERS.items() if provider.name in ort.get_available_providers()]
        if self.provider is None:
            return next(PROVIDERS[name] for name in there if PROVIDERS[name].unasked)
        if self.provider not in there:
            raise ConfigError(f"provider: expected one of {', '.join(there)} on this machine, got {self.provider!r}")
        return PROVIDERS[self.provider]


class Session:
    """One graph, with some of its weights replaced by name."""

    def __init__(self, exported: Exported, graph: GraphName, changed: Mapping[str, np.ndarray], options: OnnxOptions):
        """Raises BundleError when ONNX Runtime cannot load it, ConfigError when the provider does not come up."""
        path, provider = exported.graph(graph), options.chosen()
        self._changed = {name: np.ascontiguousarray(array) for name, array in changed.items()}  # ORT does not copy
        settings = _settings(options)
        if self._changed:
            values = [ort.OrtValue.ortvalue_from_numpy(array) for array in self._changed.values()]
            settings.add_external_initializers(list(self._changed), values)
        try:
            self._session = ort.InferenceSession(
                str(path), settings, providers=[(provider.name, dict(provider.options))]
            )
        except ORT_FAULTS as error:
            raise BundleError(f"{path}: ONNX Runtime cannot load it: {_first_line(error)}") from error
        if self._session.get_providers()[0] != provider.name:  # it would go on, on the CPU, with only a warning
            raise ConfigError(f"provider: {provider.name} is installed but does not start on this machine")
        self.outputs = [output.name for output in self._session.get_outputs()]
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Raises EngineFault when the inputs do not fit the graph."""
        try:
            return dict(zip(self.outputs, self._session.run(self.outputs, dict(inputs)), strict=True))
        except ORT_FAULTS as error:
            raise EngineFault(f"ONNX Runtime: {_first_line(error)}") from error


def _settings(options: OnnxOptions) -> ort.SessionOptions:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    # a thread that spins for its next operation takes the core from the robot's loop and from tuning
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return settings


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
