"""What each step of a tuning run learns from: rows of new and old tasks, noise and times, all from one seed.

Everything is drawn for the whole batch before any of it is computed, so that neither several processes nor the parts a
batch is computed in change what is learned.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hotpolicy.finetune.frames import Frames
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.runtime.model.vla import sample_times


class Batch(NamedTuple):
    rows: Tensor  # (batch,) int64, of the frames
    noise: Tensor  # (batch, draws, horizon, action_dim)
    times: Tensor  # (batch, draws)

    def part(self, chosen: Tensor) -> Batch:
        return Batch(self.rows[chosen], self.noise[chosen], self.times[chosen])


class Batches:
    """`frames` are those of new tasks and behind them those of old ones; `fresh` of the new, the last, are ones that no
    earlier run has seen."""

    def __init__(self, frames: Frames, new: int, fresh: int, config: TuneConfig):
        self._frames, self._new, self._fresh, self._config = frames, new, fresh, config
        self.replayed = round(config.batch * config.replay) if len(frames) > new else 0  # of each batch
        self.random = torch.Generator().manual_seed(config.seed)

    def draw(self) -> Batch:
        rows, draws = self._rows(), self._config.draws
        noise = torch.randn((len(rows), draws, *self._frames.actions.shape[1:]), generator=self.random)
        return Batch(rows, noise, sample_times((len(rows), draws), self.random))

    def _rows(self) -> Tensor:
        count = self._config.batch - self.replayed
        fresh = round(count * self._config.fresh) if self._fresh else 0
        new = torch.randint(0, self._new - (self._fresh if fresh else 0), (count - fresh,), generator=self.random)
        if fresh:
            newest = torch.randint(self._new - self._fresh, self._new, (fresh,), generator=self.random)
            new = torch.cat([new, newest])
        if not self.replayed:
            return new
        old = torch.randint(self._new, len(self._frames), (self.replayed,), generator=self.random)
        return torch.cat([new, old])
