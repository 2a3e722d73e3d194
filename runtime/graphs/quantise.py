"""In which form an export keeps each parameter: fp32, half precision, or 8-bit integers with a scale per channel.

Only products with a layer's weights are made smaller: they are nearly all the memory and nearly all the time. Norms,
biases, softmax, rotary position, time and Euler's steps stay in fp32, the word embeddings in half precision, and so
does, in fp32, whatever a plan keeps. Needs numpy only: a delta's tensors take their form on the robot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hotpolicy.runtime.errors import BundleError, ConfigError

Precision = Literal["fp32", "fp16", "int8", "int8-static"]
Form = Literal["fp32", "fp16", "int8"]
Range = tuple[float, float]  # smallest and largest of an activation, with zero between them
# Precision -> the largest error an export may have, in normalised action units, where nobody says another.
BOUNDS: dict[Precision, float] = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.25, "int8-static": 0.25}
LARGEST = 127  # of an 8-bit integer, on both sides: -128 would have no counterpart


@dataclass(frozen=True)
class Plan:
    """What an export of one precision does with its weights."""

    precision: Precision = "fp32"
    keep: frozenset[str] = frozenset()  # weights whose products stay in fp32
    ranges: Mapping[str, Range] = field(default_factory=dict)  # int8-static: weight -> what it is multiplied with

    def product(self, weight: str) -> Form:
        """Of a weight that activations are multiplied with."""
        if weight in self.keep:
            return "fp32"
        return "int8" if self.precision.startswith("int8") else "fp16" if self.precision == "fp16" else "fp32"

    def table(self) -> Form:
        """Of one that rows are picked from, as words pick theirs."""
        return "fp32" if self.precision == "fp32" else "fp16"

    def range(self, weight: str) -> Range | None:
        """int8-static: what is beyond it is clipped. None: the range is that of each activation itself.
        Raises BundleError for a product that was never measured."""
        if self.precision != "int8-static":
            return None
        if weight not in self.ranges:
            raise BundleError(f"{weight}: expected a calibrated range, none was measured")
        return self.ranges[weight]


def check_precision(name: str) -> Precision:
    """Raises ConfigError."""
    if name not in BOUNDS:
        raise ConfigError(f"precision: expected one of {', '.join(BOUNDS)}, got {name!r}")
    return name


def encode(name: str, array: np.ndarray, form: Form) -> dict[str, np.ndarray]:
    """A parameter as the tensors that stand for it in a graph's data. int8: the weight (out, in) lies the other way
    round, as the product reads it, and its `scale_of` is (out,) fp32. Raises BundleError for numbers too large."""
    if form == "fp32":
        return {name: np.ascontiguousarray(array, np.float32)}
    if form == "fp16":
        with np.errstate(over="ignore"):
            half = np.ascontiguousarray(array.astype(np.float32), np.float16)
        if not np.isfinite(half).all():
            raise BundleError(f"{name}: has numbers too large for fp16; export it as fp32 or int8")
        return {name: half}
    wide = np.asarray(array, np.float32)
    most = np.maximum(wide.max(1), -wide.min(1))
    scale = np.where(most > 0, most / LARGEST, 1).astype(np.float32)
    whole = np.rint(wide / scale[:, None]).astype(np.int8)  # at most LARGEST, by the choice of scale
    return {name: np.ascontiguousarray(whole.T), scale_of(name): scale}


def decode(stored: Mapping[str, np.ndarray], name: str, form: Form) -> np.ndarray:
    """What a graph computes with in place of the parameter: fp32, in its own shape."""
    array = stored[name].astype(np.float32)
    return array if form != "int8" else array.T * stored[scale_of(name)][:, None]


def scale_of(name: str) -> str:
    return f"{name}.scale"


def steps_of(known: Range) -> tuple[float, int]:
    """A range in 255 steps: the size of one, and the step that is zero."""
    low, high = known
    size = (high - low) / 255 or 1.0
    return size, round(-low / size)
