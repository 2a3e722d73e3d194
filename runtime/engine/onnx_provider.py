"""What ONNX Runtime computes with: a table of providers, and the options of an engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from hotpolicy.runtime.engine.onnx_cache import Compiled, Machine, nvidia
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.graphs.quantise import BOUNDS

Shapes = Mapping[str, Sequence[Sequence[int]]]  # input -> smallest, usual and largest shape


@dataclass(frozen=True, slots=True)
class Provider:
    """An execution provider. **Only the CPU's was ever run.**"""

    name: str  # as ONNX Runtime calls it
    device: str = "cpu"  # where keys and values lie between prefix and head
    unasked: bool = True  # take it where it is there, without being told to
    precisions: tuple[str, ...] = ("fp32", "fp16")  # of exports that it computes as they are meant
    bucket: int = 1  # tokens: text is padded to a multiple of it, so that few shapes are compiled
    options: Callable[[str, Shapes], dict[str, str]] = lambda precision, shapes: {}
    cached: Callable[[Path], dict[str, str]] | None = None  # a folder of this one engine's own -> options that use it


def _cuda(precision: str, shapes: Shapes) -> dict[str, str]:
    # TF32 rounds what is multiplied to 10 bits: what was certified in fp32 would not be fp32
    return {"use_tf32": "0" if precision == "fp32" else "1", "cudnn_conv_algo_search": "HEURISTIC"}


def _tensorrt(precision: str, shapes: Shapes) -> dict[str, str]:
    profile = {
        f"trt_profile_{which}_shapes": ",".join(
            f"{name}:{'x'.join(map(str, three[i]))}" for name, three in shapes.items()
        )
        for i, which in enumerate(("min", "opt", "max"))
    }
    return {
        "trt_fp16_enable": str(int(precision == "fp16")),
        "trt_engine_cache_enable": "0",  # unless it gets a folder of its own
        **profile,
    }


def _tensorrt_cache(folder: Path) -> dict[str, str]:
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }


# In order of preference. Building TensorRT's engines takes minutes at every swap, so it is used only when asked for.
PROVIDERS = {
    "tensorrt": Provider(
        "TensorrtExecutionProvider", "cuda", unasked=False, bucket=64, options=_tensorrt, cached=_tensorrt_cache
    ),
    "cuda": Provider("CUDAExecutionProvider", "cuda", bucket=64, options=_cuda),
    "cpu": Provider("CPUExecutionProvider", precisions=tuple(BOUNDS)),
}


@dataclass(frozen=True, slots=True)
class OnnxOptions:
    provider: str | None = None  # of PROVIDERS; None: the first that is there
    threads: int | None = None  # of one inference on the CPU; None: one for a small model, else one per core
    cache: Path | str | None = None  # folder for what a provider compiled; None: it compiles at every start and swap

    def chosen(self) -> Provider:
        """Raises ConfigError when the provider asked for is unknown or not in this build of ONNX Runtime."""
        there = [name for name, provider in PROVIDERS.items() if provider.name in ort.get_available_providers()]
        if self.provider is None:
            return next(PROVIDERS[name] for name in there if PROVIDERS[name].unasked)
        if self.provider not in there:
            raise ConfigError(f"provider: expected one of {', '.join(there)} on this machine, got {self.provider!r}")
        return PROVIDERS[self.provider]


def provider_options(
    provider: Provider, graph: str, weights: str, precision: str, shapes: Shapes, cache: Path | None, machine: Machine
) -> dict[str, str]:
    """For one session; `graph` and `weights` are digests. Makes the folder of its cache, where it has one. Raises
    ConfigError for a precision that is not for this provider."""
    if precision not in provider.precisions:
        raise ConfigError(
            f"provider: {provider.name} is for exports in {' or '.join(provider.precisions)}, this one is {precision}"
        )
    options = provider.options(precision, shapes)
    if provider.cached is None or cache is None or not machine.known:
        return options
    folder = Compiled(provider.name, graph, weights, precision, shapes, options, machine).folder(cache)
    os.makedirs(folder, exist_ok=True)
    return {**options, **provider.cached(folder)}


def this_machine(provider: Provider) -> Machine:
    if provider.device == "cpu":
        return Machine(None, {})
    capability, versions = nvidia()
    return Machine(capability, {"onnxruntime": ort.__version__, **versions})
