"""Which episodes are held out: some of every task over all datasets, and the same ones ever after.

An episode's side depends on its task and on what stands before it, so that more episodes at the end of the last
dataset, or another dataset after it, move none. What an ancestor was tuned
on or watched on stays on its side whatever grew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.storage.catalog import EpisodeInfo
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.errors import DatasetError

SMALLEST = 3  # episodes of a task, from which on one is held out


@dataclass(frozen=True, slots=True)
class Split:
    """Episode numbers of one dataset. Episodes judged a failure are on neither side, unless a person took over in them:
    what they did then is right all the same, and it is all that is learned from there."""

    train: tuple[int, ...]
    held_out: tuple[int, ...]


def split(datasets: Sequence[Dataset], share: float, ancestors: Sequence[Bundle] = ()) -> list[Split]:
    """One for each dataset. Of every `round(1 / share)` episodes of a task one is held out, counted over all datasets
    in their order. `ancestors`: versions whose sides are kept. Raises DatasetError for a share beyond 0 to 0.5."""
    if not 0.0 <= share <= 0.5:
        raise DatasetError(f"held_out: expected a share from 0 to 0.5, got {share}")
    sides: list[dict[int, bool]] = [_known(dataset, ancestors) for dataset in datasets]  # episode -> is held out
    of_task: dict[str, list[tuple[int, int]]] = defaultdict(list)  # (dataset, episode)
    for number, dataset in enumerate(datasets):
        for info in _good(dataset):
            of_task[info.task].append((number, info.index))
    for task, members in of_task.items() if share else ():
        size = round(1 / share)
        for start in range(0, len(members), size):
            known = {at: sides[at[0]][at[1]] for at in members[start : start + size] if at[1] in sides[at[0]]}
            if (chosen := _draw(members[start : start + size], known, _place(task, start, size))) is not None:
                sides[chosen[0]][chosen[1]] = True
    return [_split(dataset, side) for dataset, side in zip(datasets, sides, strict=True)]


def _place(task: str, start: int, size: int) -> int:
    """Of the one that is held out among `size` episodes; early in the first of them, so that few are enough."""
    draw = np.random.default_rng([0, *task.encode(), start])
    return int(draw.integers(1, min(size, SMALLEST))) if start == 0 else int(draw.integers(size))


def _draw(
    block: Sequence[tuple[int, int]], known: Mapping[tuple[int, int], bool], place: int
) -> tuple[int, int] | None:
    """The one at `place`, or the next whose side is free; None where one is held out already, or none is there yet."""
    if any(known.values()):
        return None
    return next((at for at in block[place:] if at not in known), None)


def _known(dataset: Dataset, ancestors: Sequence[Bundle]) -> dict[int, bool]:
    """What the ancestors' provenance says of these very episodes, the dataset being theirs or theirs grown."""
    known: dict[int, bool] = {}
    for made in _sources(ancestors):
        held, trained = made["held_out"], made["episodes"]
        count = len(held) + len(trained) + made["failed"]
        if count <= len(dataset) and _prefix(dataset, count).digest == made["digest"]:
            known |= {**dict.fromkeys(trained, False), **dict.fromkeys(held, True)}
    return known


def _sources(ancestors: Sequence[Bundle]) -> Iterator[Mapping[str, Any]]:
    for bundle in ancestors:
        for made in bundle.manifest.provenance.get("datasets", ()):
            if isinstance(made, Mapping) and {"digest", "episodes", "held_out", "failed"} <= made.keys():
                yield made


def _prefix(dataset: Dataset, count: int) -> Dataset:
    return dataset if count == len(dataset) else dataset.first(count)


def _good(dataset: Dataset) -> Iterator[EpisodeInfo]:
    return (info for info in dataset.episodes if info.success is not False or info.interventions)


def _split(dataset: Dataset, side: Mapping[int, bool]) -> Split:
    good = [info.index for info in _good(dataset)]
    return Split(
        tuple(index for index in good if not side.get(index)), tuple(index for index in good if side.get(index))
    )
