"""How much memory a policy's weights take, and what fits a board: arithmetic on what a manifest says.

An estimate, never run on a board. Weights are counted exactly; what else a process takes is an allowance, said below.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.errors import BundleError, ConfigError
from hotpolicy.runtime.graphs.exported import Exported
from hotpolicy.runtime.model.weights import part
from hotpolicy.runtime.versions.boards import Board
from hotpolicy.runtime.versions.manifest import TensorInfo
from hotpolicy.runtime.versions.tensor_file import DTYPES

WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}  # bytes of one weight, in a precision asked for
# Allowances, assumed and not measured: replace them by what `hotpolicy doctor` shows on the board.
SYSTEM_GB = 2.0  # operating system, camera buffers, the robot's process
PROCESS_GB = 2.0  # interpreter, libraries, GPU context and activations, for each process that computes
HELD = 3  # versions in memory at a swap: live, the one before it, and the candidate
FROZEN_BYTES = 4  # of any weight in a tuning process: it is widened to fp32
TUNED_BYTES = 20  # of one that learns, besides: a copy, its average, gradient and AdamW's two moments, in fp32


@dataclass(frozen=True, slots=True)
class Footprint:
    """Of one version."""

    parameters: int
    head_parameters: int  # the action expert and the heads: what a small update changes
    bytes: int
    head_bytes: int

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, TensorInfo], precision: str | None = None) -> Footprint:
        """Weights as they are stored, or all in one precision. Raises ConfigError for a precision that is not known,
        BundleError for a dtype that is not."""
        if precision is not None and precision not in WIDTHS:
            raise ConfigError(f"precision: expected one of {', '.join(WIDTHS)}, got {precision!r}")
        counts = {name: math.prod(info.shape) for name, info in tensors.items()}
        bytes = {name: n * (WIDTHS[precision] if precision else _width(tensors[name])) for name, n in counts.items()}
        head = [name for name in tensors if (group := part(name)) == "heads" or group.startswith("expert")]
        return cls(
            sum(counts.values()),
            sum(counts[name] for name in head),
            sum(bytes.values()),
            sum(bytes[name] for name in head),
        )

    @classmethod
    def of_chain(cls, chain: Sequence[Bundle], precision: str | None = None) -> Footprint:
        tensors = {name: info for bundle in chain for name, info in bundle.manifest.tensors.items()}
        return cls.of_tensors(tensors, precision)

    @classmethod
    def of_export(cls, exported: Exported) -> Footprint:
        """The graphs as they are: what their files hold is in memory when they are served."""
        counted = cls.of_tensors(exported.tensors)
        sizes = {name: (exported.folder / name).stat().st_size for name in exported.content["files"]}
        graphs = {name: size for name, size in sizes.items() if ".onnx" in name}
        head = sum(size for name, size in graphs.items() if name.startswith("head"))
        return cls(counted.parameters, counted.head_parameters, sum(graphs.values()), head)


@dataclass(frozen=True, slots=True)
class Need:
    """Memory in all, the system's included, GB."""

    serve: float  # one version
    swap_head: float  # live, previous and candidate, which share all but the head
    swap_all: float  # the same, and they share nothing
    tune_head: float  # a tuning process beside the server, with a model of its own and a head that learns, without what
    # `hotpolicy finetune --plan --board` adds: activations and other strategies

    @classmethod
    def of(cls, footprint: Footprint) -> Need:
        weights, head = footprint.bytes / 1e9, footprint.head_bytes / 1e9
        frozen = footprint.parameters * FROZEN_BYTES / 1e9
        serve = SYSTEM_GB + PROCESS_GB + weights
        learning = footprint.head_parameters * TUNED_BYTES / 1e9
        return cls(
            serve=serve,
            swap_head=serve + (HELD - 1) * head,
            swap_all=serve + (HELD - 1) * weights,
            tune_head=serve + PROCESS_GB + frozen + learning,
        )

    def fits(self, board: Board) -> dict[str, bool]:
        """By field, whether the board has that much."""
        return {
            name: getattr(self, name) <= board.memory_gb for name in ("serve", "swap_head", "swap_all", "tune_head")
        }


def _width(info: TensorInfo) -> int:
    if info.dtype not in DTYPES:
        raise BundleError(f"dtype {info.dtype}: not one of {', '.join(DTYPES)}")
    return DTYPES[info.dtype].itemsize
