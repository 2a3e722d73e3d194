"""Engines compute: normalised batch in, normalised actions out. Chosen from a table and imported late."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from hotpolicy.runtime.errors import ConfigError

if TYPE_CHECKING:
    from hotpolicy.runtime.bundle import Bundle


@dataclass(frozen=True, slots=True)
class Guidance:
    """What each row's chunk is pulled towards while it is sampled: see `runtime/rtc.py`. A row of zero weights is
    sampled as if there were no guidance."""

    previous: np.ndarray  # (batch, horizon, width) float32, normalised; promised from now on, its last action repeated
    weight: np.ndarray  # (batch, horizon) float32, 0..1: share of the pull for each action, see `rtc.weights`
    limit: np.ndarray  # (batch,) float32, positive: maximum guidance weight

    @classmethod
    def none(cls, batch: int, horizon: int, width: int) -> Guidance:
        """Of rows without any; fill in those that have some."""
        zeros = np.zeros((batch, horizon, width), np.float32)
        return cls(zeros, np.zeros((batch, horizon), np.float32), np.ones(batch, np.float32))

    def arrays(self) -> dict[str, np.ndarray]:
        """By name, as an exported head takes them."""
        return {"previous": self.previous, "weight": self.weight, "limit": self.limit}


@dataclass(frozen=True, slots=True)
class Batch:
    """What a model sees, after transforms."""

    images: np.ndarray  # (batch, cameras, height, width, 3) uint8
    image_mask: np.ndarray  # (batch, cameras) bool; False for a camera slot without an image
    tokens: np.ndarray  # (batch, length) int64
    token_mask: np.ndarray  # (batch, length) bool; False for padding
    state: np.ndarray  # (batch, joints) float32, normalised
    noise: np.ndarray  # (batch, horizon, joints) float32, standard normal: where the flow starts
    guidance: Guidance | None = None  # None: no row has any, and nothing is spent on it


class Engine(Protocol):
    """One policy version, loaded. `infer` is called by one thread at a time."""

    guidable: ClassVar[bool]  # `infer` follows a batch's guidance; an engine that does not is never given any

    def infer(self, batch: Batch) -> np.ndarray: ...  # (batch, horizon, joints) float32, normalised

    def derive(self, bundle: Bundle) -> Engine: ...  # a delta on this engine's version; shares what did not change


ENGINES = {
    "torch": "hotpolicy.runtime.engine.torch_engine:TorchEngine",
    "onnx": "hotpolicy.runtime.engine.onnx_engine:OnnxEngine",
    "echo": "hotpolicy.runtime.engine.echo_engine:EchoEngine",
}


def load_engine(name: str, bundle: Bundle, **options: Any) -> Engine:
    """Load a full bundle into the engine called `name`; `options` are that engine's own. Raises ConfigError for an
    unknown engine, BundleError when the bundle does not account for every parameter."""
    if name not in ENGINES:
        raise ConfigError(f"engine: expected one of {', '.join(ENGINES)}, got {name!r}")
    module, _, attribute = ENGINES[name].partition(":")
    return getattr(import_module(module), attribute).load(bundle, **options)
