"""Numbers of a robot to numbers of about one, and back: by mean and spread, or by the quantiles of what was seen.

`eps` is part of both directions, so that the inverse is one. openpi adds 1e-6 everywhere. LeRobot adds 1e-8 to a
standard deviation (on the way in only, which float32 does not see) and nothing to a quantile range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hotpolicy.runtime.errors import BundleError


class Normaliser(Protocol):
    @property
    def kind(self) -> str: ...  # as the manifest names it

    @property
    def eps(self) -> float: ...

    @property
    def shape(self) -> tuple[int, ...]: ...  # (joints,) or (horizon, joints)

    @property
    def scale(self) -> np.ndarray: ...  # of that shape: robot units in one normalised unit

    def forward(self, values: np.ndarray) -> np.ndarray: ...  # (..., *shape) -> float32

    def inverse(self, values: np.ndarray) -> np.ndarray: ...

    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Normalise:
    """(x - mean) / (std + eps), and back."""

    mean: np.ndarray  # float32, (joints,) or (horizon, joints)
    std: np.ndarray
    eps: float = 0.0

    @classmethod
    def fit(cls, values: np.ndarray, floor: np.ndarray) -> Normalise:
        """Over the first axis. `floor` (joints,) is the smallest std allowed: a joint that never moved in the
        data would otherwise make any later use of it explode."""
        return cls.floored(values.mean(0), values.std(0), floor)

    @classmethod
    def floored(cls, mean: np.ndarray, std: np.ndarray, floor: np.ndarray | float, eps: float = 0.0) -> Normalise:
        """Statistics from elsewhere, every std at least `floor` (in the joint's units)."""
        return cls(mean.astype(np.float32), np.maximum(std, floor).astype(np.float32), eps)

    @property
    def kind(self) -> str:
        return "mean_std"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mean.shape

    @property
    def scale(self) -> np.ndarray:
        return self.std + np.float32(self.eps)

    def forward(self, values: np.ndarray) -> np.ndarray:
        return np.asarray((values - self.mean) / self.scale, np.float32)

    def inverse(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values * self.scale + self.mean, np.float32)

    def to_dict(self) -> dict[str, Any]:
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}


@dataclass(frozen=True, slots=True)
class Quantile:
    """q01 to -1 and q99 to 1, straight on beyond them, and back. With a minimum and a maximum in their places it is
    LeRobot's MIN_MAX."""

    q01: np.ndarray  # float32, (joints,) or (horizon, joints)
    q99: np.ndarray
    eps: float = 0.0

    @classmethod
    def floored(cls, q01: np.ndarray, q99: np.ndarray, floor: np.ndarray | float, eps: float = 0.0) -> Quantile:
        """Statistics from elsewhere, every range at least `floor` (in the joint's units), widened about its middle."""
        more = np.maximum(floor - (q99 - q01), 0) / 2
        return cls((q01 - more).astype(np.float32), (q99 + more).astype(np.float32), eps)

    @property
    def kind(self) -> str:
        return "quantile"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.q01.shape

    @property
    def scale(self) -> np.ndarray:
        return (self.q99 - self.q01 + np.float32(self.eps)) / 2

    def forward(self, values: np.ndarray) -> np.ndarray:
        return np.asarray((values - self.q01) / self.scale - 1, np.float32)

    def inverse(self, values: np.ndarray) -> np.ndarray:
        return np.asarray((values + 1) * self.scale + self.q01, np.float32)

    def to_dict(self) -> dict[str, Any]:
        return {"q01": self.q01.tolist(), "q99": self.q99.tolist()}


def normaliser_from_dict(kind: object, data: object, field: str, eps: float) -> Normaliser:
    """`kind` is the entry's `normalisation`. Raises BundleError naming the number that is missing, not finite, or
    would divide by nothing."""
    if kind == "mean_std":
        mean, std = _pair(data, "mean", "std", field)
        _check_positive(std, field, "std", "a joint that never moved in the data: give it a floor")
        return Normalise(mean, std, eps)
    if kind == "quantile":
        q01, q99 = _pair(data, "q01", "q99", field)
        _check_positive(q99 - q01, field, "q99 - q01", "a joint that never moved in the data: give it a floor")
        return Quantile(q01, q99, eps)
    raise BundleError(f"transforms.normalisation: expected 'mean_std' or 'quantile', got {kind!r}")


def _pair(data: object, one: str, other: str, field: str) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(data, Mapping) or set(data) != {one, other}:
        got = sorted(map(str, data)) if isinstance(data, Mapping) else type(data).__name__
        raise BundleError(f"transforms.{field}: expected {one} and {other}, got {got}")
    try:
        first, second = np.array(data[one], np.float32), np.array(data[other], np.float32)
    except (TypeError, ValueError) as error:
        raise BundleError(f"transforms.{field}: expected numbers: {error}") from error
    if first.shape != second.shape or first.ndim not in (1, 2) or not first.size:
        raise BundleError(
            f"transforms.{field}: expected {one} and {other} of one shape, (joints,) or (horizon, joints), "
            f"got {first.shape} and {second.shape}"
        )
    for name, array in ((one, first), (other, second)):
        if not np.isfinite(array).all():
            raise BundleError(f"transforms.{field}.{name}: expected finite numbers, got {_first(~np.isfinite(array))}")
    return first, second


def _check_positive(range_: np.ndarray, field: str, name: str, why: str) -> None:
    if not (range_ > 0).all():
        raise BundleError(f"transforms.{field}: {name}: expected more than 0, got {_first(range_ <= 0)} ({why})")


def _first(wrong: np.ndarray) -> str:
    joint = int(np.argwhere(wrong)[0][-1])
    return f"otherwise at joint {joint}"
