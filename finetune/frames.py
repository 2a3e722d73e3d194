"""Samples as the model sees them: encoded once by the parent's own transforms, then picked by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hotpolicy.finetune.samples import Samples
from hotpolicy.runtime.errors import BadRequest, DatasetError
from hotpolicy.runtime.model.vla import Prefix, Vla
from hotpolicy.runtime.transforms import Transforms

TENSORS = ("images", "tokens", "token_mask", "state", "actions")


@dataclass(frozen=True, slots=True)
class Frames:
    images: Tensor  # (n, cameras, height, width, 3) uint8: a slot without a camera is left out, the mask would hide it
    tokens: Tensor  # (n, length) int64
    token_mask: Tensor  # (n, length) bool
    state: Tensor  # (n, width) float32, normalised
    actions: Tensor  # (n, horizon, width) float32, normalised: what the flow must arrive at
    tasks: tuple[str, ...]  # (n,)

    def __len__(self) -> int:
        return len(self.tasks)

    @classmethod
    def encode(cls, samples: Samples, transforms: Transforms) -> Frames:
        """Raises DatasetError for samples of another horizon or number of joints, that are not finite, or whose
        instruction is longer than the model reads."""
        expected = (transforms.horizon, transforms.joints)
        if samples.actions.shape[1:] != expected:
            raise DatasetError(f"samples: actions: expected {expected} each, got {samples.actions.shape[1:]}")
        if not (np.isfinite(samples.state).all() and np.isfinite(samples.actions).all()):
            raise DatasetError("samples: expected finite states and actions, got NaN or infinity")
        tasks = tuple(str(task) for task in samples.tasks)
        try:
            tokens, token_mask = transforms.encode_tasks(tasks, samples.state)
        except BadRequest as error:
            raise DatasetError(f"samples: {error}") from error
        return cls(
            images=torch.from_numpy(np.ascontiguousarray(samples.images)),
            tokens=torch.from_numpy(tokens),
            token_mask=torch.from_numpy(token_mask),
            state=torch.from_numpy(transforms.encode_state(samples.state)),
            actions=torch.from_numpy(transforms.encode_actions(samples.actions, samples.state)),
            tasks=tasks,
        )

    def pick(self, rows: Tensor) -> Frames:
        tensors = {name: getattr(self, name)[rows] for name in TENSORS}
        return Frames(**tensors, tasks=tuple(self.tasks[row] for row in rows.tolist()))

    def prefix(self, model: Vla, rows: Tensor) -> Prefix:
        images = self.images[rows]
        seen = torch.ones(images.shape[:2], dtype=torch.bool)
        return model.prefix(images, seen, self.tokens[rows], self.token_mask[rows])


def concatenate(parts: Sequence[Frames]) -> Frames:
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in TENSORS}
    return Frames(**joined, tasks=tuple(task for part in parts for task in part.tasks))
