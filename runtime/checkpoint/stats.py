"""Normaliser statistics of openpi (norm_stats.json) and LeRobot (safetensors) as one noun, checked once.

All of their modes are a line through two numbers per joint: a mean and a spread, or two ends that become -1 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hotpolicy.runtime.checkpoint.layout import read_json
from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.versions.tensor_file import TensorFile

Mode = Literal["mean_std", "quantile"]
NEEDS: dict[Mode, tuple[str, str]] = {"mean_std": ("mean", "std"), "quantile": ("q01", "q99")}
STATE, ACTION = "observation.state", "action"  # as LeRobot calls them
SMALLEST = 1e-6  # a spread below this is none: openpi adds as much to every denominator
OPENPI_EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Numbers:
    """Statistics of one vector, each (entries,) float64: mean, std, q01, q99, and what else a file has."""

    where: str  # file and feature, for messages
    values: Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Stats:
    state: Numbers
    action: Numbers
    eps: float = 0.0  # what the trainer adds to std and to q99 - q01, in both directions


@dataclass(frozen=True, slots=True)
class Line:
    """A normaliser's two numbers per joint: mean and std, or q01 and q99."""

    mode: Mode
    low: np.ndarray  # mean or q01, (joints,) float64
    high: np.ndarray  # std or q99
    raised: tuple[str, ...] = ()  # joints whose spread was below the floor

    def to_dict(self) -> dict[str, list[float]]:
        return {name: values.tolist() for name, values in zip(NEEDS[self.mode], (self.low, self.high), strict=True)}

    def as_mean_std(self) -> Line:
        if self.mode == "mean_std":
            return self
        return Line("mean_std", (self.low + self.high) / 2, (self.high - self.low) / 2, self.raised)


def read_stats(path: Path) -> Stats:
    """openpi's norm_stats.json, a LeRobot data set's meta/stats.json or a LeRobot normaliser's safetensors. Raises
    BundleError naming file and field."""
    if path.suffix == ".json":
        data = read_json(path)
        return _of_json(path, data, STATE, ACTION) if STATE in data and ACTION in data else read_openpi(path)
    if path.suffix == ".safetensors":
        return read_lerobot(path)
    raise BundleError(f"{path}: expected statistics as norm_stats.json (openpi) or .safetensors (LeRobot)")


def read_openpi(path: Path) -> Stats:
    """{"norm_stats": {"state": {"mean": [...], "std": ..., "q01": ..., "q99": ...}, "actions": {...}}}"""
    stats = read_json(path).get("norm_stats")
    if not isinstance(stats, dict):
        raise BundleError(f"{path}: norm_stats: missing, expected state and actions")
    return _of_json(path, stats, "state", "actions", "norm_stats.", OPENPI_EPSILON)


def read_lerobot(path: Path) -> Stats:
    """Flat tensors `observation.state.mean`, `action.q01`, ..."""
    tensors = TensorFile(path)
    found: dict[str, dict[str, np.ndarray]] = {STATE: {}, ACTION: {}}
    for key in tensors:
        feature, _, name = key.rpartition(".")
        if feature in found and name != "count":
            found[feature][name] = _vector(f"{path}: {feature}", name, tensors[key])
    for feature, values in found.items():
        if not values:
            raise BundleError(f"{path}: {feature}: missing, expected tensors such as {feature}.mean")
    return Stats(Numbers(f"{path}: {STATE}", found[STATE]), Numbers(f"{path}: {ACTION}", found[ACTION]))


def _of_json(path: Path, data: Mapping[str, Any], state: str, action: str, prefix: str = "", eps: float = 0.0) -> Stats:
    def numbers(key: str) -> Numbers:
        where, fields = f"{path}: {prefix}{key}", data.get(key)
        if not isinstance(fields, dict):
            raise BundleError(f"{where}: missing, expected mean, std, q01 and q99")
        return Numbers(where, {name: _vector(where, name, v) for name, v in fields.items() if v is not None})

    return Stats(numbers(state), numbers(action), eps)


def line(
    numbers: Numbers, mode: Mode, joints: Sequence[str], floor: float | None = None,
    fields: tuple[str, str] | None = None,
) -> Line:  # fmt: skip
    """The first len(joints) entries as a normaliser (files padded to the model's width have more).
    `floor` is the smallest std (or half of q99 - q01) allowed, in the joint's unit: smaller ones are raised to it.
    Raises BundleError for a statistic that is missing, too short or not finite, and for a spread of nothing without a
    floor."""
    low_name, high_name = fields or NEEDS[mode]
    low, high = (_need(numbers, name, len(joints)) for name in (low_name, high_name))
    if not fields and mode == "mean_std":
        spread, what = high, "std"
    else:
        spread, what = (high - low) / 2, f"range {low_name} to {high_name}"
    small = spread < (SMALLEST if floor is None else max(floor, SMALLEST))
    raised: tuple[str, ...] = ()
    if small.any():
        names = [joint for joint, is_small in zip(joints, small, strict=True) if is_small]
        if floor is None:
            first = int(np.argmax(small))
            raise BundleError(
                f"{numbers.where}: {what} of {names[0]} is {spread[first]:g}: it never moved in the training data, and "
                "normalising by nothing explodes; give --floor, the smallest spread allowed in the joint's unit"
            )
        raised = tuple(names)
        middle = low if what == "std" else (low + high) / 2
        spread = np.where(small, floor, spread)
        low, high = (low, spread) if what == "std" else (middle - spread, middle + spread)
    return Line(mode, low, high, raised)


def _need(numbers: Numbers, name: str, count: int) -> np.ndarray:
    if name not in numbers.values:
        have = ", ".join(sorted(numbers.values)) or "nothing"
        raise BundleError(f"{numbers.where}.{name}: missing; there are: {have}")
    values = numbers.values[name]
    if len(values) < count:
        raise BundleError(
            f"{numbers.where}.{name}: expected at least {count} entries, one per joint, got {len(values)}"
        )
    values = values[:count]
    if not np.isfinite(values).all():
        raise BundleError(f"{numbers.where}.{name}: entry {int(np.argmin(np.isfinite(values)))} is not a finite number")
    return values


def _vector(where: str, name: str, value: object) -> np.ndarray:
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise BundleError(f"{where}.{name}: expected a list of numbers") from error
    if array.ndim > 1:
        raise BundleError(f"{where}.{name}: expected one number per entry, got shape {array.shape}")
    return array.reshape(-1)
