"""What a family of policy networks is to the rest: a prefix of K/V, a velocity that attends to it, named parameters.

A family is one file with one subclass of `Vla`, and a line in FAMILIES. Loading, serving and tuning know no more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hotpolicy.runtime.model.guided import Promise

R = TypeVar("R")


class VlaConfig(Protocol):
    """A family's own frozen dataclass; what others read of it."""

    @property
    def horizon(self) -> int: ...  # actions per chunk

    @property
    def action_dim(self) -> int: ...  # joints, or the width they are padded to

    @property
    def steps(self) -> int: ...  # from noise to actions

    def to_dict(self) -> dict[str, Any]: ...  # what `Vla.of` takes


class Prefix(NamedTuple):
    """What the expert needs of one frame. It depends on images and instruction only, so it can be cached."""

    keys: tuple[Tensor, ...]  # per layer (batch, kv_heads, tokens, head_dim)
    values: tuple[Tensor, ...]
    mask: Tensor  # (batch, tokens) bool; False for padding and absent cameras


class Vla(nn.Module, ABC):
    """A policy network. Images, tokens and states arrive normalised, actions leave normalised."""

    family: ClassVar[str]  # as manifests spell it
    config: Any  # VlaConfig
    recompute = False  # in training: a layer's activations are computed again on the way back, not kept

    @classmethod
    @abstractmethod
    def of(cls, config: Mapping[str, Any]) -> Vla:
        """From a manifest's `model.config`. Raises TypeError or KeyError for fields that are unknown or missing."""

    @abstractmethod
    def prefix(
        self, images: Tensor, image_mask: Tensor, tokens: Tensor, token_mask: Tensor, *, packed: bool = True
    ) -> Prefix:
        """images (batch, cameras, height, width, 3) uint8, image_mask (batch, cameras) bool, tokens (batch, length)
        int64, token_mask (batch, length) bool. What is masked need not be computed and need have no place in the
        result; with packed=False all of it has one, so that shapes follow from shapes alone."""

    @abstractmethod
    def velocity(self, prefix: Prefix, state: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """At x_t (batch, draws, horizon, action_dim) and t (batch, draws), where 1 is noise and 0 is actions;
        state (batch, action_dim). Draws share a frame's prefix and do not see each other."""

    @abstractmethod
    def flow(
        self, prefix: Prefix, state: Tensor, noise: Tensor, schedule: Any = None, promise: Promise | None = None
    ) -> Tensor:
        """noise (batch, horizon, action_dim) -> actions of the same shape, pulled towards the promise."""

    @abstractmethod
    def groups(self) -> dict[str, str]:
        """Parameter name -> group: vision, projector, embedding, language.<layer>, expert.<layer> or heads."""

    def schedule(self, steps: int | None = None) -> Any:
        """What `flow` can know before any frame: computed once per version of the weights."""
        return None

    def step(self, prefix: Prefix, state: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Velocity at x_t (batch, horizon, action_dim) and time t (batch,); state (batch, action_dim)."""
        return self.velocity(prefix, state, x_t[:, None], t[:, None])[:, 0]

    def flow_loss(self, prefix: Prefix, state: Tensor, actions: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Squared error of the velocity, (batch, draws): actions (batch, horizon, action_dim),
        noise (batch, draws, horizon, action_dim), t (batch, draws)."""
        at = t[..., None, None]
        target = noise - actions[:, None]
        predicted = self.velocity(prefix, state, at * noise + (1 - at) * actions[:, None], t)
        return (predicted - target).pow(2).mean((2, 3))

    def layer(self, function: Callable[..., R], *args: Any) -> R:
        """Run one layer; where gradients are wanted, in the way `recompute` says."""
        if not (self.recompute and torch.is_grad_enabled()):
            return function(*args)
        result: R = checkpoint(function, *args, use_reentrant=False)
        return result

    def idle(self) -> frozenset[str]:
        """Names of parameters without any effect on the actions: never trained."""
        return frozenset()

    def precise(self) -> frozenset[str]:
        """Names of parameters that stay in fp32 where the others are bf16."""
        return frozenset()

    def pace(self, group: str) -> float:
        """What this group's learning rate is multiplied by."""
        return 1.0


def sample_times(shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
    """Training times: Beta(1.5, 1) * 0.999 + 0.001, mostly near noise, as in pi0. Beta(a, 1) is uniform ** (1/a)."""
    return torch.rand(shape, generator=generator).pow(1 / 1.5) * 0.999 + 0.001
