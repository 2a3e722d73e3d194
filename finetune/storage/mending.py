"""What a repair would do to a dataset: which episodes stay, which go, and what is made again."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from hotpolicy.finetune.storage import layout
from hotpolicy.finetune.storage.catalog import EpisodeInfo
from hotpolicy.finetune.storage.damage import Damage, Survey
from hotpolicy.finetune.storage.disk import put
from hotpolicy.finetune.storage.footer import MAGIC, close_file
from hotpolicy.finetune.storage.inspection import ALTERED, check, inspect
from hotpolicy.finetune.storage.layout import Info
from hotpolicy.runtime import durable
from hotpolicy.runtime.errors import DatasetError

CLOSED = "closed"  # the copy in which files that were never closed are closed


@dataclass(slots=True)
class Plan:
    """What a repair would do to the folder `root`."""

    root: Path
    found: Survey  # of `root`, or of a copy beside it in which files that were never closed are closed
    keep: list[EpisodeInfo] = field(default_factory=list)  # in their new order, with the numbers they have now
    sealed: list[int] = field(default_factory=list)  # of these, those that were whole but never counted
    damaged: dict[int, list[Damage]] = field(default_factory=dict)  # episodes that cannot be kept
    altered: list[str] = field(default_factory=list)  # files to be kept as they are now
    mended: list[Damage] = field(default_factory=list)

    @property
    def rebuilds(self) -> bool:
        return bool(self.sealed or self.damaged or self.altered or self.mended)

    def lines(self) -> list[str]:
        """For people: one thing a line."""
        lines = [f"take out episode {index}: {_reason(damages)}" for index, damages in self.damaged.items()]
        lines += [f"seal episode {index}, which is whole but was never counted" for index in self.sealed]
        lines += [f"keep as it is now: {file}" for file in self.altered]
        lines += [f"make again: {_of(damage)}{damage.file}: {damage.what}" for damage in self.mended]
        return lines + [f"remove what never ended: {what}" for what in self.found.gathered()]


def _reason(damages: list[Damage]) -> str:
    """Why an episode must go: what is broken in it, or else that it is not as it was recorded."""
    broken = [damage for damage in damages if damage.what != ALTERED]
    told = (broken or damages)[0]
    return f"{told.file}: {told.what}" + ("" if broken else ", but it can be read: --keep-altered keeps it")


def plan(root: Path, keep_altered: bool = False) -> Plan:
    """Look at every byte and decide. `keep_altered`: files that differ from what was recorded but can be read are kept
    as they are. Raises DatasetError when nothing can be made of the folder."""
    closed = _close_files(root)
    found, damages = check(beside(root, CLOSED) if closed else root)
    damages += closed
    made = Plan(root, found)
    for index in sorted({*found.sealed, *found.episodes}):
        of_it = [damage for damage in damages if damage.episode == index]
        if index not in found.sealed:
            of_it = list(inspect(found, found.episodes[index]))
        changed = [damage.file for damage in of_it if damage.what == ALTERED]
        fatal = [
            d
            for d in of_it
            if not d.mendable and not (d.what == ALTERED and keep_altered) and d.file != "meta/episodes"
        ]
        if fatal or index not in found.episodes:
            if index in found.sealed:
                made.damaged[index] = fatal or of_it
            else:
                found.leftovers += [file for file in found.episodes[index].files if (found.root / file).exists()]
            continue
        made.altered += changed
        made.keep.append(found.episodes[index])
        if index not in found.sealed:
            made.sealed.append(index)
    taken_out = set(made.damaged)
    kept = {file for episode in made.keep for file in episode.files}
    made.mended = [
        d for d in damages if d.episode not in taken_out and d.what != ALTERED and (d.file in kept or d not in closed)
    ]
    if set(found.uncounted) - set(made.sealed):
        made.mended.append(Damage(layout.STATS, "may count an episode that is not whole"))
    return made


def _close_files(root: Path) -> list[Damage]:
    """Where LeRobot was killed: a copy of the folder in which files of rows that were never closed can be read as far
    as they go. What was done, file by file; none: then there is no copy either."""
    copy = beside(root, CLOSED)
    shutil.rmtree(copy, ignore_errors=True)
    try:
        features = Info.load(root).features
    except DatasetError:
        return []
    done = []
    for path in sorted((root / "data").glob("*/*.parquet")):
        content = path.read_bytes()
        if content[:4] != MAGIC or content[-4:] == MAGIC or (closed := close_file(content, features)) is None:
            continue
        if not copy.exists():
            shutil.copytree(root, copy, copy_function=lambda old, new: durable.link_file(Path(old), Path(new)))
        file = str(path.relative_to(root))
        (copy / file).unlink()
        put(copy / file, closed)
        frames = pq.read_metadata(copy / file).num_rows
        done.append(Damage(file, f"never closed; the first {frames} frames can be read", None, True))
    return done


def _of(damage: Damage) -> str:
    return "" if damage.episode is None else f"episode {damage.episode}, "


def beside(root: Path, what: str) -> Path:
    return root.with_name(f".{root.name}.{what}")
