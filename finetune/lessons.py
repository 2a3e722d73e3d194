"""What one tuning run learns from and is watched on: new demonstrations, old tasks, and held-out parts of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.replay import rehearsal_of
from hotpolicy.finetune.samples import Samples, join, of_dataset
from hotpolicy.finetune.split import split
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.errors import DatasetError
from hotpolicy.runtime.transforms import Transforms

EVERY = 10  # of the frames of each task in a rehearsal set, one in so many is held out


@dataclass(frozen=True, slots=True)
class Source:
    """A dataset as it was when it was read, for the provenance of what is learned from it."""

    root: str
    digest: str
    episodes: tuple[int, ...]  # trained on
    held_out: tuple[int, ...]
    failed: int  # episodes left out because they were judged a failure, and nobody had taken over


@dataclass(frozen=True, slots=True)
class Span:
    """Which episodes of the first dataset are learned from; the rest may be recorded meanwhile."""

    until: int | None = None  # those before this one; None: all
    since: int = 0  # those from this one on are fresh: an earlier run has not seen them


@dataclass(frozen=True, slots=True)
class Lessons:
    new: Samples
    old: Samples | None = None  # replayed, so that it is not forgotten
    new_held_out: Samples | None = None
    old_held_out: Samples | None = None
    sources: tuple[Source, ...] = ()
    rehearsal: Samples | None = None  # the parent's whole set: what the next version's begins with
    fresh: int = 0  # frames at the end of `new` that an earlier run has not seen; 0: nothing sets some apart


def gather(
    chain: Sequence[Bundle],
    datasets: Sequence[Path],
    replayed: Sequence[Path] = (),
    held_out: float = 0.15,
    span: Span | None = None,
) -> Lessons:
    """Read new demonstrations and what the version at the end of `chain` rehearses, with sealed datasets of older
    tasks beside it. Episodes judged a failure are not learned from. Raises DatasetError, BundleError."""
    horizon = Transforms.of_chain(chain).horizon
    new = _read(datasets, held_out, chain, span or Span())
    old = _read(replayed, held_out, chain, Span())
    earlier = _joined([read.earlier for read in new])
    fresh = _joined([read.fresh for read in new])
    trained = _joined([earlier, fresh])
    if trained is None:
        raise DatasetError("datasets: expected at least one episode to learn from, got none")
    rehearsal = rehearsal_of(chain)
    if rehearsal and rehearsal.actions.shape[1] != horizon:
        raise DatasetError(f"rehearsal: expected {horizon} actions, got {rehearsal.actions.shape[1]}")
    kept, watched = split_frames(rehearsal) if rehearsal else (None, None)
    return Lessons(
        new=trained,
        old=_joined([kept, *(read.fresh for read in old)]),
        new_held_out=_joined([read.held_out for read in new]),
        old_held_out=_joined([watched, *(read.held_out for read in old)]),
        sources=tuple(read.source for read in (*new, *old)),
        rehearsal=rehearsal,
        fresh=len(fresh) if earlier is not None and fresh is not None else 0,
    )


def split_frames(samples: Samples) -> tuple[Samples, Samples | None]:
    """A rehearsal set has no episodes: hold out every tenth frame of each task. Neighbours of a held-out frame may be
    trained on, so its figures say whether a task is forgotten, not how well it was learned."""
    held = np.zeros(len(samples), bool)
    for name in samples.task_names():
        held[np.flatnonzero(samples.tasks == name)[EVERY - 1 :: EVERY]] = True
    return samples.pick(~held), samples.pick(held) if held.any() else None


@dataclass(frozen=True, slots=True)
class _Read:
    earlier: Samples | None  # before the span's `since`
    fresh: Samples | None  # from there on
    held_out: Samples | None
    source: Source


def _read(roots: Sequence[Path], held_out: float, chain: Sequence[Bundle], span: Span) -> list[_Read]:
    """`span` is the first dataset's."""
    datasets = [Dataset.open(root) for root in roots]
    if datasets and span.until is not None:
        datasets[0] = datasets[0].first(span.until)
    sides = split(datasets, held_out, chain)
    spec, transforms = chain[-1].manifest.spec, Transforms.of_chain(chain)

    def samples(dataset: Dataset, episodes: tuple[int, ...]) -> Samples | None:
        return of_dataset(dataset, episodes, spec, transforms.images, transforms.horizon)

    found: list[_Read] = []
    for root, dataset, side in zip(roots, datasets, sides, strict=True):
        since = span.since if not found else 0
        failed = len(dataset) - len(side.train) - len(side.held_out)
        read = _Read(
            earlier=samples(dataset, tuple(index for index in side.train if index < since)),
            fresh=samples(dataset, tuple(index for index in side.train if index >= since)),
            held_out=samples(dataset, side.held_out),
            source=Source(str(root), dataset.digest, side.train, side.held_out, failed),
        )
        found.append(read)
    return found


def _joined(parts: Sequence[Samples | None]) -> Samples | None:
    present = [part for part in parts if part is not None]
    return join(present) if present else None
