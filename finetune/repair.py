"""Mends a dataset: whatever is whole goes into a new folder, which then takes the old one's place.

Rule 1: nothing that was sealed is changed or removed. The folder as it was stays beside the mended one, as
`NAME.before-repair`; files that need no change are shared between the two, so the copy costs little.
Rule 2: the new folder is checked, every byte, before the two change places.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hotpolicy.finetune import layout, stats
from hotpolicy.finetune.catalog import Clip, EpisodeInfo, camera_columns, write_row
from hotpolicy.finetune.disk import make_folder, put
from hotpolicy.finetune.footer import MAGIC, close_file
from hotpolicy.finetune.inspection import ALTERED, check, inspect, load_columns, pictures, stats_of
from hotpolicy.finetune.layout import Info
from hotpolicy.finetune.survey import Damage, Survey
from hotpolicy.runtime import durable
from hotpolicy.runtime.digest import file_sha256
from hotpolicy.runtime.errors import DatasetError

CLOSED = "closed"  # the copy in which files that were never closed are closed
MADE_AGAIN = ("data", "videos", "meta", "images", layout.WORK)  # not taken along as they are


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
        lines = [f"take out episode {index}: {d.file}: {d.what}" for index, ds in self.damaged.items() for d in ds[:1]]
        lines += [f"seal episode {index}, which is whole but was never counted" for index in self.sealed]
        lines += [f"keep as it is now: {file}" for file in self.altered]
        lines += [f"make again: {_of(damage)}{damage.file}: {damage.what}" for damage in self.mended]
        return lines + [f"remove what never ended: {what}" for what in self.found.gathered()]


def plan(root: Path, keep_altered: bool = False) -> Plan:
    """Look at every byte and decide. `keep_altered`: files that differ from what was recorded but can be read are kept
    as they are. Raises DatasetError when nothing can be made of the folder."""
    closed = _close_files(root)
    found, damages = check(_beside(root, CLOSED) if closed else root)
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
    made.mended = [d for d in damages if d.episode not in taken_out and d.what != ALTERED]
    if set(found.uncounted) - set(made.sealed):
        made.mended.append(Damage(layout.STATS, "may count an episode that is not whole"))
    return made


def carry_out(made: Plan, drop: bool = False) -> Path | None:
    """Do it; returns where the folder as it was is now (None: nothing sealed had to change).

    Raises DatasetError when episodes would have to be taken out and `drop` does not say so, when a recorder has the
    folder open, or when the result is not whole: then nothing has changed.
    """
    root = made.root
    if made.damaged and not drop:
        names = "; ".join(line for line in made.lines() if line.startswith("take out"))
        raise DatasetError(f"{root}: nothing was changed: to mend it, --drop must allow to {names}")
    if made.damaged and not made.keep:
        raise DatasetError(f"{root}: nothing was changed: no episode of it is whole")
    with _alone(root):
        if not made.rebuilds:
            for file in made.found.leftovers:
                (root / file).unlink(missing_ok=True)
            return None
        fresh = _beside(root, "repair")
        shutil.rmtree(fresh, ignore_errors=True)  # of a repair that was killed
        try:
            _Builder(made, fresh).build()
            if wrong := check(fresh)[1]:
                raise DatasetError(f"{root}: nothing was changed: the mended copy has {wrong[0].file}: {wrong[0].what}")
        except OSError as error:
            raise DatasetError(f"{root}: nothing was changed ({error})") from error
        finally:
            if not (fresh / layout.INFO).exists():
                shutil.rmtree(fresh, ignore_errors=True)
        before = _free_name(root)
        os.rename(root, before)
        os.rename(fresh, root)
        durable.sync_folder(root.parent)
    return before


@contextmanager
def planned(root: Path, keep_altered: bool = False) -> Iterator[Plan]:
    """`plan`, and at the end whatever it needed beside the folder is gone."""
    try:
        yield plan(root, keep_altered)
    finally:
        shutil.rmtree(_beside(root, CLOSED), ignore_errors=True)


def _close_files(root: Path) -> list[Damage]:
    """Where LeRobot was killed: a copy of the folder in which files of rows that were never closed can be read as far
    as they go. What was done, file by file; none: then there is no copy either."""
    copy = _beside(root, CLOSED)
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


class _Builder:
    """Writes the episodes that are kept, numbered anew, into a fresh folder."""

    def __init__(self, made: Plan, fresh: Path):
        self.made, self.found, self.fresh = made, made.found, fresh
        self.sums: dict[str, str] = {}
        self._columns = camera_columns(self.found.info)
        self._users = Counter(file for e in self.found.episodes.values() for file in e.files)
        self._damaged = {damage.episode for damage in made.mended if damage.file.startswith("data")}

    def build(self) -> None:
        found, info = self.found, self.found.info
        merged, first, last = [], 0, -1
        tasks = found.tasks + sorted({e.task for e in self.made.keep} - set(found.tasks))
        for number, (old, linked) in enumerate(zip(self.made.keep, self._unchanged(), strict=True)):
            at = _number(layout.place_of(old.file), info.chunks_size)
            last = at if linked else max(number, last + 1)
            place = _place(last, info.chunks_size)
            file = info.data_path.format(**place)
            clips = {
                self._columns[name]: self._clip(clip, place, self._columns[name]) for name, clip in old.clips.items()
            }
            new = replace(old, index=number, first=first, file=file, clips=clips)
            columns = load_columns(found, old) | _counters(new, info.fps, tasks)
            if linked:
                self._link(old.file, file)
            else:
                self._write(old, new, columns)
            episode_stats = self._stats(old, columns)
            at_meta = _place(max(number, last), info.chunks_size) if not linked else _place(number, info.chunks_size)
            put(
                self.fresh / layout.EPISODES.format(**at_meta),
                layout.parquet(write_row(new, info.fps, at_meta, episode_stats)),
            )
            merged.append(episode_stats)
            first += new.length
        self._finish(tasks, merged, first)

    def _unchanged(self) -> list[bool]:
        """Of each episode that is kept, whether the file of its rows can stay as it is."""
        first, same = 0, []
        for number, old in enumerate(self.made.keep):
            same.append(old.index == number and old.first == first and number not in self._damaged)
            first += old.length
        rows = Counter[str]()
        moved = {old.file for old, stays in zip(self.made.keep, same, strict=True) if not stays}
        for old in self.made.keep:
            rows[old.file] += old.length
        fit = {file: pq.read_metadata(self.found.root / file).num_rows == count for file, count in rows.items()}
        return [old.file not in moved and fit[old.file] for old in self.made.keep]

    def _clip(self, clip: Clip, place: Mapping[str, int], column: str) -> Clip:
        """Its video, under the episode's number where it has one of its own."""
        alone = self._users[clip.file] == 1 and clip.start == 0.0
        file = str(self.found.info.video_path).format(video_key=column, **place) if alone else clip.file
        self._link(clip.file, file)
        return Clip(file, clip.start)

    def _link(self, old: str, new: str) -> None:
        target = self.fresh / new
        if target.exists():
            if not target.samefile(self.found.root / old):
                raise DatasetError(f"{self.found.root}: nothing was changed: two files would become {new}")
            return
        make_folder(target.parent)
        durable.link_file(self.found.root / old, target)
        durable.sync_folder(target.parent)
        known = self.found.extra.get("sha256", {}).get(old)
        self.sums[new] = known if known and old not in self.made.altered else file_sha256(target)

    def _write(self, old: EpisodeInfo, new: EpisodeInfo, columns: Mapping[str, np.ndarray]) -> None:
        path = self.found.root / old.file
        wanted = [name for name, feature in self.found.info.features.items() if feature["dtype"] != "video"]
        table = layout.load_table(path, wanted, filters=[("episode_index", "=", old.index)])
        for name in layout.COUNTERS:
            at = table.schema.get_field_index(name)
            if at >= 0:
                field_ = table.schema.field(at)
                table = table.set_column(at, field_, pa.array(columns[name]).cast(field_.type))
        table = table.replace_schema_metadata(pq.read_schema(path).metadata)
        put(self.fresh / new.file, layout.parquet(table))
        self.sums[new.file] = file_sha256(self.fresh / new.file)

    def _stats(self, old: EpisodeInfo, columns: Mapping[str, np.ndarray]) -> dict[str, stats.Stats]:
        noted = stats_of(self.found.rows.get(old.index, {}))
        made = {name: stats.of_numbers(values) for name, values in columns.items()}
        for name, column in self._columns.items():
            if column in noted:
                made[column] = noted[column]
                continue
            levels = stats.ImageStats()
            for image in pictures(self.found, old, name):
                levels.add(image)
            made[column] = levels.stats()
        return made

    def _finish(self, tasks: Sequence[str], merged: Sequence[Mapping[str, stats.Stats]], frames: int) -> None:
        root, info = self.found.root, self.found.info
        for entry in root.iterdir():
            if entry.name not in MADE_AGAIN:
                target = self.fresh / entry.name
                if entry.is_dir():
                    shutil.copytree(entry, target, symlinks=True)
                else:
                    shutil.copy2(entry, target, follow_symlinks=False)
        put(self.fresh / layout.TASKS, layout.tasks_file(tasks))
        put(self.fresh / layout.STATS, layout.json_file(stats.to_lists(stats.merge_columns(merged))))
        if self.found.extra:
            put(self.fresh / layout.EXTRA, layout.json_file({**self.found.extra, "sha256": self.sums}))
        info = replace(info, total_episodes=len(merged), total_frames=frames, total_tasks=len(tasks))
        put(self.fresh / layout.INFO, layout.json_file(info.to_dict()))


def _counters(episode: EpisodeInfo, fps: int, tasks: Sequence[str]) -> dict[str, np.ndarray]:
    frames = np.arange(episode.length)
    return {
        "timestamp": (frames / fps).astype(np.float32),
        "frame_index": frames,
        "episode_index": np.full(episode.length, episode.index),
        "index": frames + episode.first,
        "task_index": np.full(episode.length, tasks.index(episode.task)),
    }


def _number(place: Mapping[str, int], chunks: int) -> int:
    return place["chunk_index"] * chunks + place["file_index"]


def _place(number: int, chunks: int) -> dict[str, int]:
    chunk, file = divmod(number, chunks)
    return {"chunk_index": chunk, "file_index": file}


def _of(damage: Damage) -> str:
    return "" if damage.episode is None else f"episode {damage.episode}, "


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    try:
        make_folder(root / layout.WORK)
        with filelock.FileLock(root / layout.WORK / "lock", timeout=0):
            yield
    except filelock.Timeout as error:
        raise DatasetError(f"{root}: a recorder has it open") from error


def _beside(root: Path, what: str) -> Path:
    return root.with_name(f".{root.name}.{what}")


def _free_name(root: Path) -> Path:
    names = [f"{root.name}.before-repair", *(f"{root.name}.before-repair-{i}" for i in range(2, 1000))]
    return next(root.with_name(name) for name in names if not root.with_name(name).exists())
