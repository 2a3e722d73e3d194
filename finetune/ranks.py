"""The processes of one tuning run: torchrun's, or this one alone. Each computes its part of every batch; gradients are
summed, so that all take the same step with the same weights.

What is drawn (rows, noise, times) is drawn for the whole batch in every process, from one seed: a run learns the same
on one process and on several.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from hotpolicy.runtime.errors import TuningError

SILENCE = timedelta(minutes=10)  # after which a process that others wait for counts as lost


@dataclass(frozen=True, slots=True)
class Ranks:
    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> Ranks:
        """The group that torchrun's environment names, over gloo; alone where there is none. Raises TuningError when
        the others do not come."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return ALONE
        try:
            if not dist.is_initialized():
                dist.init_process_group("gloo", timeout=SILENCE)
        except (ValueError, RuntimeError) as error:
            raise TuningError(f"the other processes of this run cannot be reached: {error}") from error
        return cls(dist.get_rank(), size)

    @property
    def first(self) -> bool:
        """The one that speaks, saves and seals."""
        return self.rank == 0

    def part(self, batch: int) -> Tensor:
        """Which of a batch's rows are this process's."""
        return torch.arange(batch).tensor_split(self.size)[self.rank]

    def total(self, value: float) -> float:
        """Summed over processes. Raises TuningError when one is lost."""
        if self.size == 1:
            return value
        number = torch.tensor(value, dtype=torch.float64)
        self._sum(number)
        return number.item()

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """In one message. A process without rows of a batch has no gradient of its own, and gives zeros."""
        if self.size == 1:
            return
        members = list(parameters)
        flat = torch.cat(
            [(member.grad if member.grad is not None else torch.zeros_like(member)).flatten() for member in members]
        )
        self._sum(flat)
        for member, summed in zip(members, flat.split([member.numel() for member in members]), strict=True):
            member.grad = summed.view_as(member)

    def _sum(self, tensor: Tensor) -> None:
        try:
            dist.all_reduce(tensor)
        except RuntimeError as error:
            raise TuningError(f"process {self.rank} of {self.size}: another one is lost: {error}") from error


ALONE = Ranks()
