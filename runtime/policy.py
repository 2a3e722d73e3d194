"""A policy version in memory: transforms in, engine, transforms out. What the server calls and the slot swaps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.engine import Engine, load_engine
from hotpolicy.runtime.errors import BadRequest
from hotpolicy.runtime.messages import CameraSpec, Observation, RobotSpec
from hotpolicy.runtime.transforms import Transforms


class Policy:
    """Weights, normalisers and tokenizer of one bundle, as one unit. `infer` is called by one thread at a time."""

    def __init__(self, bundle: Bundle, engine: Engine):
        manifest = bundle.manifest
        self.version, self.digest = manifest.id, manifest.digest
        self.spec: RobotSpec = manifest.spec
        self.transforms = Transforms.from_dict(manifest.transforms)
        self.horizon = self.transforms.horizon
        self.engine = engine
        self._noise = np.random.default_rng()

    def derive(self, bundle: Bundle) -> Policy:
        """The policy of a delta on this one; what did not change is shared, and this policy stays as it is."""
        return Policy(bundle, self.engine.derive(bundle))

    def check(self, observation: Observation) -> None:
        """Raises BadRequest naming the field and what was expected. Called before anything is queued."""
        state, joints = observation.state, len(self.spec.joints)
        if state.shape != (joints,) or state.dtype != np.float32:
            raise BadRequest(f"state: expected ({joints},) float32, got {state.shape} {state.dtype}")
        if not np.isfinite(state).all():
            raise BadRequest("state: expected finite numbers, got NaN or infinity")
        for camera in self.spec.cameras:
            _check_image(observation, camera)
        if unknown := set(observation.images) - {camera.name for camera in self.spec.cameras}:
            raise BadRequest(f"images.{min(unknown)}: this policy knows no such camera")
        self.transforms.tokenizer.encode(observation.task)

    def infer(self, observations: Sequence[Observation], noise: np.ndarray | None = None) -> np.ndarray:
        """-> (batch, horizon, joints) float32 absolute targets in the spec's units. `noise`, of the same shape,
        fixes where the flow starts; without it, it is drawn."""
        shape = (len(observations), self.horizon, len(self.spec.joints))
        start = self._noise.standard_normal(shape, np.float32) if noise is None else noise
        actions = self.engine.infer(self.transforms.encode(observations, start))
        return self.transforms.decode(actions, np.stack([seen.state for seen in observations]))


def _check_image(observation: Observation, camera: CameraSpec) -> None:
    if camera.name not in observation.images:
        raise BadRequest(f"images.{camera.name}: expected this camera, got {sorted(observation.images) or 'none'}")
    image, expected = observation.images[camera.name], (camera.height, camera.width, 3)
    if image.shape != expected or image.dtype != np.uint8:
        raise BadRequest(f"images.{camera.name}: expected {expected} uint8, got {image.shape} {image.dtype}")


def load_policy(chain: Sequence[Bundle], engine: str = "torch") -> Policy:
    """A full bundle and the deltas on it, oldest first -> the policy of the last one."""
    policy = Policy(chain[0], load_engine(engine, chain[0]))
    for delta in chain[1:]:
        policy = policy.derive(delta)
    return policy
