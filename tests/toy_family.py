"""A second family of policies in one file, as small as can be: what `Vla` asks for, and nothing of pi0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hotpolicy.runtime.model.guided import Guide, Promise
from hotpolicy.runtime.model.vla import Prefix, Vla

FAMILY = {"toy": "toy_family:Toy"}  # a line of FAMILIES


@dataclass(frozen=True, slots=True)
class ToyConfig:
    width: int
    vocabulary: int
    action_dim: int
    horizon: int
    steps: int = 4

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Toy(Vla):
    """One token per camera (its mean colour) and per word; actions look at their weighted sum, and at nothing else."""

    family = "toy"

    def __init__(self, config: ToyConfig):
        super().__init__()
        self.config = config
        self.eye = nn.Linear(3, config.width)
        self.words = nn.Embedding(config.vocabulary, config.width)
        self.reader = nn.Linear(config.width, 2 * config.width)
        self.spare = nn.Parameter(torch.zeros(config.width))
        self.mixer = nn.Linear(2 * config.width + 1, config.width)
        self.joints = nn.Linear(2 * config.action_dim, config.width)
        self.out = nn.Linear(config.width, config.action_dim)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Toy:
        return cls(ToyConfig(**config))

    def prefix(
        self, images: Tensor, image_mask: Tensor, tokens: Tensor, token_mask: Tensor, *, packed: bool = True
    ) -> Prefix:
        colours = images.to(self.eye.weight.dtype).mean((2, 3)) / 127.5 - 1
        seen = torch.cat([self.eye(colours), self.words(tokens)], 1)
        key, value = self.reader(seen).chunk(2, -1)
        return Prefix((key[:, None],), (value[:, None],), torch.cat([image_mask, token_mask], 1))

    def velocity(self, prefix: Prefix, state: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        weight = prefix.keys[0].mean(-1).masked_fill(~prefix.mask[:, None], -1e9).softmax(-1)
        seen = torch.einsum("bht,bhtw->bw", weight, prefix.values[0])[:, None, None].expand(*x_t.shape[:3], -1)
        joints = self.joints(torch.cat([x_t, state[:, None, None].expand_as(x_t)], -1))
        time = t[..., None, None].expand(*x_t.shape[:3], 1)
        return self.out(torch.tanh(self.mixer(torch.cat([seen, joints, time], -1))))

    def flow(
        self, prefix: Prefix, state: Tensor, noise: Tensor, schedule: Any = None, promise: Promise | None = None
    ) -> Tensor:
        steps, x = self.config.steps, noise[:, None]
        guide = promise and Guide(promise, steps)
        for index in range(steps):
            velocity = self.velocity(prefix, state, x, x.new_full((len(x), 1), 1 - index / steps))
            if guide:
                velocity = guide.bend(velocity, x, index)
            x = x - velocity / steps
        return x[:, 0]

    def groups(self) -> dict[str, str]:
        parts = {"eye": "vision", "words": "embedding", "reader": "language.0", "spare": "language.0"}
        parts |= {"mixer": "expert.0", "joints": "heads", "out": "heads"}
        return {name: parts[name.partition(".")[0]] for name, _ in self.named_parameters()}

    def idle(self) -> frozenset[str]:
        return frozenset({"spare"})
