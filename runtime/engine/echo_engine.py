"""A policy without a model: every action is its bundle's `level`, after a sleep of `delay_ms`.

It writes which version it is into what it answers, so a test can tell that a reply came from the version it
names; and it costs nothing, so a benchmark can measure all the rest.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from hotpolicy.runtime.bundle import Bundle, seal
from hotpolicy.runtime.engine import Batch
from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.messages import CameraSpec, Joint, Observation, RobotSpec
from hotpolicy.runtime.observed import check_observation
from hotpolicy.runtime.versions.golden import FILE as GOLDEN
from hotpolicy.runtime.versions.golden import Golden

TENSORS = ("level", "delay_ms")  # each (1,) float32
SPEC = RobotSpec(
    joints=tuple(Joint(f"joint_{i}.pos", "deg", -10_000.0, 10_000.0) for i in range(6)),
    cameras=(CameraSpec("front", 64, 64),),
    rate_hz=10.0,
)


@dataclass(frozen=True)
class EchoEngine:
    """The Engine contract: normalised actions, all of them `level`."""

    level: float
    delay_ms: float
    guidable: ClassVar[bool] = False

    @classmethod
    def load(cls, bundle: Bundle) -> EchoEngine:
        """Raises BundleError when the bundle is not a full echo policy."""
        tensors = _tensors(bundle)
        for name in TENSORS:
            if name not in tensors:
                raise BundleError(f"{bundle.id}: tensor {name}: missing")
        return cls(**tensors)

    def derive(self, bundle: Bundle) -> EchoEngine:
        return EchoEngine(**{"level": self.level, "delay_ms": self.delay_ms, **_tensors(bundle)})

    def infer(self, batch: Batch) -> np.ndarray:
        """(batch, horizon, joints) float32; sleeps without holding the interpreter."""
        if self.delay_ms > 0:
            time.sleep(self.delay_ms / 1000)
        return np.full(batch.noise.shape, self.level, np.float32)


@dataclass(frozen=True)
class EchoPolicy:
    """The policy contract without transforms: `level` in the robot's own units. It takes no guides: a session that
    sends `rtc` is answered all the same, and told that its chunk is not guided."""

    guidable: ClassVar[bool] = False

    version: str
    digest: str
    spec: RobotSpec
    horizon: int
    engine: EchoEngine

    @property
    def width(self) -> int:
        return len(self.spec.joints)

    @classmethod
    def load(cls, bundle: Bundle, parent: EchoPolicy | None = None) -> EchoPolicy:
        """For a Slot: a full bundle, or a delta on a parent that is loaded."""
        if bundle.manifest.kind == "delta":
            if parent is None:
                raise BundleError(f"{bundle.id}: a delta needs its parent {bundle.manifest.parent} loaded")
            return parent.derive(bundle)
        return cls._of(bundle, EchoEngine.load(bundle))

    def derive(self, bundle: Bundle) -> EchoPolicy:
        return self._of(bundle, self.engine.derive(bundle))

    def infer(self, observations: Sequence[Observation], noise: np.ndarray | None = None) -> np.ndarray:
        """(batch, horizon, joints) float32, units of the spec."""
        if self.engine.delay_ms > 0:
            time.sleep(self.engine.delay_ms / 1000)
        return np.full((len(observations), self.horizon, len(self.spec.joints)), self.engine.level, np.float32)

    def check(self, observation: Observation) -> None:
        """Raises BadRequest naming the field of an observation that is not of this policy's robot."""
        check_observation(observation, self.spec)

    @classmethod
    def _of(cls, bundle: Bundle, engine: EchoEngine) -> EchoPolicy:
        horizon = bundle.manifest.model["config"].get("horizon")
        if type(horizon) is not int or horizon < 1:
            raise BundleError(f"{bundle.id}: model.config.horizon: expected at least 1 action, got {horizon!r}")
        return cls(bundle.id, bundle.digest, bundle.manifest.spec, horizon, engine)


def seal_echo(
    folder: Path | str,
    level: float,
    *,
    delay_ms: float = 0.0,
    parent: Bundle | None = None,
    spec: RobotSpec = SPEC,
    horizon: int = 8,
    golden: Golden | None = None,
) -> Bundle:
    """Seal an echo policy into `folder`: full, or (with `parent`) a delta that changes only the level."""
    tensors = {"level": np.array([level], np.float32)}
    if parent is None:
        tensors["delay_ms"] = np.array([delay_ms], np.float32)
    return seal(
        folder,
        kind="full" if parent is None else "delta",
        parent=None if parent is None else parent.id,
        model={"family": "echo", "config": {"horizon": horizon}} if parent is None else parent.manifest.model,
        tensors=tensors,
        spec=spec if parent is None else parent.manifest.spec,
        transforms={},
        provenance={"made_by": "echo"},
        files={} if golden is None else {GOLDEN: golden.to_bytes()},
    )


def _tensors(bundle: Bundle) -> dict[str, float]:
    if bundle.manifest.model["family"] != "echo":
        raise BundleError(f"{bundle.id}: model.family: expected echo, got {bundle.manifest.model['family']!r}")
    tensors = bundle.tensors()
    for name, tensor in tensors.items():
        if name not in TENSORS:
            raise BundleError(f"{bundle.id}: tensor {name}: not a tensor of the echo policy")
        if tensor.dtype != np.float32 or tensor.shape != (1,):
            raise BundleError(f"{bundle.id}: tensor {name}: expected float32 (1,), got {tensor.dtype} {tensor.shape}")
    return {name: float(tensor[0]) for name, tensor in tensors.items()}
