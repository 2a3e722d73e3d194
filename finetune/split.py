"""Which episodes are trained on, and which are held out to judge by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hotpolicy.finetune.catalog import EpisodeInfo
from hotpolicy.runtime.errors import DatasetError


@dataclass(frozen=True, slots=True)
class Split:
    """Episode numbers to train on and to hold out."""

    train: tuple[int, ...]
    held_out: tuple[int, ...]


def split(episodes: Sequence[EpisodeInfo], held_out: float, seed: int) -> Split:
    """See `Dataset.split`. Raises DatasetError for a share that is none."""
    if not 0.0 <= held_out <= 0.5:
        raise DatasetError(f"held_out: expected a share from 0 to 0.5, got {held_out}")
    of_task: dict[str, list[int]] = defaultdict(list)
    for info in episodes:
        of_task[info.task].append(info.index)
    out: set[int] = set()
    for task, members in of_task.items() if held_out else ():
        block = round(1 / held_out)
        for start in range(0, len(members), block):
            draw = np.random.default_rng([seed, *task.encode(), start])
            place = int(draw.integers(1, min(block, 3))) if start == 0 else int(draw.integers(block))
            out.update(members[start + place : start + place + 1])
    return Split(tuple(i for i in range(len(episodes)) if i not in out), tuple(sorted(out)))
