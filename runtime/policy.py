"""A policy version in memory: transforms in, engine, transforms out. What the server calls and the slot swaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.engine import Engine, Guidance, load_engine
from hotpolicy.runtime.messages import Observation, RobotSpec
from hotpolicy.runtime.observed import check_observation
from hotpolicy.runtime.serving.epochs import Guide
from hotpolicy.runtime.tokenizer import Inherited, SideFiles
from hotpolicy.runtime.transforms import Transforms


class Policy:
    """Weights, normalisers and tokenizer of one bundle, as one unit. `infer` is called by one thread at a time."""

    def __init__(
        self, bundle: Bundle, engine: Engine, files: SideFiles | None = None, transforms: Transforms | None = None
    ):
        """`files` has the side files that a delta inherits, `transforms` what it shares with its parent. Raises
        BundleError where transforms, robot and model do not fit each other."""
        manifest = bundle.manifest
        self.version, self.digest = manifest.id, manifest.digest
        self.spec: RobotSpec = manifest.spec
        self.files = Inherited(bundle, files)
        self.transforms = transforms or Transforms.from_dict(manifest.transforms, self.files)
        self.transforms.check_fits(self.spec, manifest.model["config"])
        self.horizon, self.width = self.transforms.horizon, self.transforms.width
        self._bundle = bundle
        self.engine = engine
        self.guidable = engine.guidable  # `infer` takes guides
        self._noise = np.random.default_rng()

    def derive(self, bundle: Bundle) -> Policy:
        """The policy of a delta on this one; what did not change is shared, and this policy stays as it is."""
        return Policy(bundle, self.engine.derive(bundle), self.files, self._shared(bundle))

    def check(self, observation: Observation) -> None:
        """Raises BadRequest naming the field and what was expected. Called before anything is queued."""
        images = self.transforms.images
        check_observation(observation, self.spec, images.size if images.resize == "pad" else None)
        self.transforms.encode_tasks([observation.task], observation.state[None])

    def infer(
        self,
        observations: Sequence[Observation],
        noise: np.ndarray | None = None,
        guides: Sequence[Guide | None] | None = None,
    ) -> np.ndarray:
        """-> (batch, horizon, joints) float32 absolute targets in the spec's units. `noise` (batch, horizon, width),
        of the model's width, fixes where the flow starts; without it, it is drawn. `guides` has for each observation
        what its chunk carries on from, or None."""
        start = self.transforms.noise(self._noise, len(observations)) if noise is None else noise
        batch, state = self.transforms.encode(observations, start), np.stack([seen.state for seen in observations])
        if guides is not None:
            batch = replace(batch, guidance=self._guidance(guides, state))
        return self.transforms.decode(self.engine.infer(batch), state)

    def _guidance(self, guides: Sequence[Guide | None], state: np.ndarray) -> Guidance:
        """In the model's own units: what a robot goes on executing is absolute, and joints whose actions are relative
        take the state of now, not the one that the chunk was made for."""
        found = Guidance.none(len(guides), self.horizon, self.width)
        for row, guide in enumerate(guides):
            if guide is not None:
                found.previous[row] = self.transforms.encode_actions(guide.actions[None], state[row : row + 1])[0]
                found.weight[row], found.limit[row] = guide.weight, guide.limit
        return found

    def _shared(self, delta: Bundle) -> Transforms | None:
        """This policy's, where a delta says the same and brings no files: a vocabulary is not held twice."""
        same = delta.manifest.transforms == self._bundle.manifest.transforms
        brought = delta.manifest.transforms["tokenizer"].get("file") in delta.manifest.files
        return self.transforms if same and not brought else None


def load_policy(chain: Sequence[Bundle], engine: str = "torch", **options: Any) -> Policy:
    """A full bundle and the deltas on it, oldest first -> the policy of the last one. `options` are the engine's."""
    policy = Policy(chain[0], load_engine(engine, chain[0], **options))
    for delta in chain[1:]:
        policy = policy.derive(delta)
    return policy
