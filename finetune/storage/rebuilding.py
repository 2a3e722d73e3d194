"""Writes a mended dataset: the episodes that are kept, numbered anew, in a fresh folder. See `repair.py`."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hotpolicy.finetune.storage import layout, stats
from hotpolicy.finetune.storage.catalog import Clip, EpisodeInfo, camera_columns, write_row
from hotpolicy.finetune.storage.disk import make_folder, put
from hotpolicy.finetune.storage.inspection import load_columns, pictures, stats_of
from hotpolicy.finetune.storage.mending import Plan
from hotpolicy.runtime import durable
from hotpolicy.runtime.digest import file_sha256
from hotpolicy.runtime.errors import DatasetError

MADE_AGAIN = ("data", "videos", "meta", "images", layout.WORK)  # not taken along as they are


class Builder:
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
