"""Between a robot's observations and a model's tensors: one definition for serving and for training.

Numbers that belong together travel together: these live in the bundle's manifest, and swap with the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hotpolicy.runtime.engine import Batch
from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.messages import Observation
from hotpolicy.runtime.tokenizer import WordTokenizer, tokenizer_from_dict


@dataclass(frozen=True, slots=True)
class Normalise:
    """(x - mean) / std, and back."""

    mean: np.ndarray  # float32, (joints,) or (horizon, joints)
    std: np.ndarray

    @classmethod
    def fit(cls, values: np.ndarray, floor: np.ndarray) -> Normalise:
        """Over the first axis. `floor` (joints,) is the smallest std allowed: a joint that never moved in the
        data would otherwise make any later use of it explode."""
        mean, std = values.mean(0), values.std(0)
        return cls(mean.astype(np.float32), np.maximum(std, floor).astype(np.float32))

    def forward(self, values: np.ndarray) -> np.ndarray:
        return ((values - self.mean) / self.std).astype(np.float32)

    def inverse(self, values: np.ndarray) -> np.ndarray:
        return (values * self.std + self.mean).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Relative:
    """Actions as differences from the measured state, for the joints the mask names; and back."""

    mask: np.ndarray  # (joints,) bool

    def forward(self, actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        """actions (batch, horizon, joints), state (batch, joints)."""
        return actions - np.where(self.mask, state, 0.0)[:, None]

    def inverse(self, actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        return actions + np.where(self.mask, state, 0.0)[:, None]


@dataclass(frozen=True, slots=True)
class Transforms:
    cameras: tuple[str, ...]  # image slots, in order
    state: Normalise  # (joints,)
    action: Normalise  # (horizon, joints): each step of the chunk has its own scale
    relative: Relative
    tokenizer: WordTokenizer

    @property
    def horizon(self) -> int:
        return int(self.action.mean.shape[0])

    @property
    def joints(self) -> int:
        return int(self.action.mean.shape[1])

    def encode(self, observations: Sequence[Observation], noise: np.ndarray) -> Batch:
        """Observations that passed `Policy.check` -> a batch; noise (batch, horizon, joints)."""
        images = np.stack([np.stack([seen.images[name] for name in self.cameras]) for seen in observations])
        tokens, masks = zip(*(self.tokenizer.encode(seen.task) for seen in observations), strict=True)
        return Batch(
            images=images,
            image_mask=np.ones(images.shape[:2], bool),
            tokens=np.stack(tokens),
            token_mask=np.stack(masks),
            state=self.state.forward(np.stack([seen.state for seen in observations])),
            noise=noise.astype(np.float32),
        )

    def decode(self, actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        """A model's (batch, horizon, joints) -> absolute targets in the robot's units; state (batch, joints) raw."""
        return self.relative.inverse(self.action.inverse(actions), state).astype(np.float32)

    def encode_actions(self, actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        """The inverse of `decode`: what a model should have said."""
        return self.action.forward(self.relative.forward(actions, state))

    def to_dict(self) -> dict[str, Any]:
        return {
            "cameras": list(self.cameras),
            "normalisation": "mean_std",
            "state": {"mean": self.state.mean.tolist(), "std": self.state.std.tolist()},
            "action": {"mean": self.action.mean.tolist(), "std": self.action.std.tolist()},
            "relative": self.relative.mask.tolist(),
            "tokenizer": self.tokenizer.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Transforms:
        """Raises BundleError naming the field that is missing or unusable."""
        try:
            if data["normalisation"] != "mean_std":
                raise BundleError(f"transforms.normalisation: expected 'mean_std', got {data['normalisation']!r}")
            return cls(
                cameras=tuple(data["cameras"]),
                state=_normalise(data["state"], "state"),
                action=_normalise(data["action"], "action"),
                relative=Relative(np.array(data["relative"], bool)),
                tokenizer=tokenizer_from_dict(data["tokenizer"]),
            )
        except KeyError as missing:
            raise BundleError(f"transforms: expected a field {missing}") from missing


def _normalise(data: Mapping[str, Any], name: str) -> Normalise:
    mean, std = np.array(data["mean"], np.float32), np.array(data["std"], np.float32)
    if mean.shape != std.shape or not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise BundleError(f"transforms.{name}: expected finite mean and positive std of one shape")
    return Normalise(mean, std)
