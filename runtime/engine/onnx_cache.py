"""Where a provider may keep what it compiled: one folder per version, shapes, tools and kind of processor.

TensorRT's own cache of engines does not look at weights (ONNX Runtime issue 6455), nor at all shapes. Two versions of
one policy have the same graph: the second would find the engine of the first and move the arm as the first did, without
a word. So the folder is named by everything that an engine is made of, and never shared.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from hotpolicy.runtime.versions.manifest import canonical

_MAJOR, _MINOR = 75, 76  # of the compute capability, as CUdevice_attribute numbers them


@dataclass(frozen=True)
class Machine:
    """What compiled code depends on besides what was compiled. None: cannot be told, so nothing is kept."""

    compute_capability: str | None  # of the GPU, e.g. "8.7"
    versions: Mapping[str, str | None]  # of onnxruntime, and of the driver and TensorRT where the provider uses them

    @property
    def known(self) -> bool:
        return self.compute_capability is not None and None not in self.versions.values()


@dataclass(frozen=True)
class Compiled:
    """All that an engine is made of."""

    provider: str
    graph: str  # sha256 of the graph's file, which has no weights in it
    weights: str  # sha256 over the digests of the parameters in it, a delta's among them
    precision: str
    shapes: Mapping[str, Sequence[Sequence[int]]]  # input -> smallest, usual and largest
    options: Mapping[str, str]  # of the provider
    machine: Machine

    def folder(self, root: Path) -> Path:
        """Where this one is kept, and no other."""
        return root / self.provider / hashlib.sha256(canonical(asdict(self)).encode()).hexdigest()[:40]


@lru_cache(maxsize=1)
def nvidia() -> tuple[str | None, dict[str, str | None]]:
    """Compute capability of the first GPU, and the driver's and TensorRT's version, asked of their own libraries.
    **Never run on a GPU.**"""
    cuda, major, minor, driver, device = _library("libcuda.so.1"), *(ctypes.c_int() for _ in range(4))
    capability, cuda_version = None, None
    if cuda is not None and cuda.cuInit(0) == 0 and cuda.cuDeviceGet(ctypes.byref(device), 0) == 0:
        asked = [
            cuda.cuDeviceGetAttribute(ctypes.byref(answer), which, device)
            for answer, which in ((major, _MAJOR), (minor, _MINOR))
        ]
        capability = f"{major.value}.{minor.value}" if asked == [0, 0] else None
        cuda_version = str(driver.value) if cuda.cuDriverGetVersion(ctypes.byref(driver)) == 0 else None
    tensorrt = next(filter(None, map(_library, ("libnvinfer.so.10", "libnvinfer.so.8", "libnvinfer.so"))), None)
    return capability, {
        "cuda driver": cuda_version,
        "tensorrt": str(tensorrt.getInferLibVersion()) if tensorrt is not None else None,
    }


def _library(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None
