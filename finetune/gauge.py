"""What a frame costs a model in training, measured on this machine: seconds, and bytes kept for the way back.

Two frames together are enough: time and activations grow with the frames that are computed at one time, from there on
about linearly. Nothing learns here, and no optimiser is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from hotpolicy.finetune import lora
from hotpolicy.finetune.activations import Activations, counting
from hotpolicy.finetune.cache import frame_bytes
from hotpolicy.finetune.frames import Frames
from hotpolicy.finetune.learner import computing
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.finetune.strategy import Stage
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.engine.torch_weights import apply_delta
from hotpolicy.runtime.model.vla import Prefix, Vla

FRAMES = 2
PATIENCE_S = 1.0  # where a whole part of a batch takes no longer, it is timed: small models are all overhead
R = TypeVar("R")


class Times(NamedTuple):
    """Seconds."""

    there: float
    back: float
    prefix: float  # where it is frozen: else it is in the others


NO_TIME = Times(0.0, 0.0, 0.0)  # of a model that is only drawn


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one frame with its draws, in one stage."""

    seconds: float  # there and back
    there_seconds: float  # of this, the way there: layers that are computed again take it twice
    prefix_seconds: float  # of this, what a kept prefix saves; 0 where it cannot be kept
    kept: int  # bytes of activations for the way back
    kept_recomputing: int  # the same when layers are computed again
    widest: int  # bytes of the largest single one: what the way back needs besides
    cache: int  # bytes of the prefix, where it can be kept; else 0
    trained: int  # parameters that learn
    folded: int  # bytes of the weights that adapters end in

    @classmethod
    def of(cls, kept: Activations, frames: int, model: Vla, times: Times = NO_TIME) -> Cost:
        """`kept` of `frames` computed together by a model whose stage is set free, `times` of one."""
        return cls(
            seconds=sum(times),
            there_seconds=times.there,
            prefix_seconds=times.prefix,
            kept=kept.total // frames,
            kept_recomputing=(kept.inputs + kept.widest_layer) // frames,
            widest=kept.widest // frames,
            cache=kept.prefix // frames,
            trained=learning(model),
            folded=lora.folded_bytes(model),
        )


class Gauge:
    def __init__(self, parent: Vla, frames: Frames, config: TuneConfig):
        self._parent, self._frames, self._config = parent, frames, config

    def measure(self, stage: Stage, backward: bool = True) -> Cost:
        """`backward=False` where gradients would not fit: the way back is then taken as twice the way there."""
        model = set_free(self._parent, stage, self._config)
        few = _Batch(model, self._frames, min(FRAMES, self._config.at_once), self._config)
        counted = few.kept(stage)
        times, timed = few.seconds(stage, backward), few.count
        if timed < self._config.at_once and sum(times) * self._config.at_once / timed < PATIENCE_S:
            many = _Batch(model, self._frames, self._config.at_once, self._config)
            times, timed = many.seconds(stage, backward), many.count
        return Cost.of(counted, few.count, model, Times(*(seconds / timed for seconds in times)))


def set_free(parent: Vla, stage: Stage, config: TuneConfig) -> Vla:
    """The parent's own weights, of which the stage's take gradients."""
    model = apply_delta(parent, {})
    random = torch.Generator().manual_seed(0)
    lora.attach(model, stage.layers(model), config.lora_rank, config.lora_alpha, random)
    free = stage.learning(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in free)
    return model


def learning(model: Vla) -> int:
    """Parameters that take gradients."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


class _Batch:
    """Frames computed together, those with most words first."""

    def __init__(self, model: Vla, frames: Frames, count: int, config: TuneConfig):
        rows = frames.token_mask.sum(1).argsort(descending=True).repeat(-(-count // len(frames)))[:count]
        self.model, self.frames, self.count, self.config = model, frames.pick(rows), count, config
        draw = torch.Generator().manual_seed(0)
        self._noise = torch.randn((count, config.draws, *frames.actions.shape[1:]), generator=draw)
        self._times = torch.rand((count, config.draws), generator=draw)

    def seconds(self, stage: Stage, backward: bool) -> Times:
        prefix, prefix_seconds = None, 0.0
        with computing(self.config):
            if stage.frozen_prefix:
                with torch.no_grad():
                    prefix, prefix_seconds = _timed(self._read)
            self._loss(prefix)  # the first one pays for caches
            loss, there = _timed(lambda: self._loss(prefix))
            if not backward:
                return Times(there, 2 * there, prefix_seconds)
            _, back = _timed(loss.backward)
        self.model.zero_grad(set_to_none=True)
        return Times(there, back, prefix_seconds)

    def kept(self, stage: Stage) -> Activations:
        """What autograd keeps between there and back."""
        prefix = None
        with computing(self.config):
            if stage.frozen_prefix:
                with torch.no_grad():
                    prefix = self._read()
            with counting(self.model) as count:
                self._loss(prefix)
        count.prefix = frame_bytes(prefix) if prefix else 0
        return count

    def _loss(self, prefix: Prefix | None) -> Tensor:
        frames = self.frames
        read = prefix or self._read()
        return self.model.flow_loss(read, frames.state, frames.actions, self._noise, self._times).float().mean()

    def _read(self) -> Prefix:
        return self.frames.prefix(self.model, torch.arange(self.count))


def _timed(work: Callable[[], R]) -> tuple[R, float]:
    started = now()
    result = work()
    return result, now() - started
