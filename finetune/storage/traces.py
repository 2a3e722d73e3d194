"""Finds the episodes in a folder of which metadata may be lost: by their rows, and by the order of their videos."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import av
import pyarrow.compute as pc

from hotpolicy.finetune.storage import layout
from hotpolicy.finetune.storage.catalog import Clip, EpisodeInfo, camera_columns, read_row
from hotpolicy.finetune.storage.damage import Survey, one_line
from hotpolicy.finetune.storage.images import count_frames
from hotpolicy.finetune.storage.layout import Info
from hotpolicy.runtime.errors import DatasetError, HotpolicyError


def find_episodes(found: Survey) -> None:
    """By their rows of metadata; where those are lost, by the frames themselves."""
    spans = _spans(found)
    videos = {
        name: column
        for name, column in camera_columns(found.info).items()
        if found.info.features[column]["dtype"] == "video"
    }
    reels = {name: Reel(found.root, column, found.info) for name, column in videos.items()}
    first = 0
    for index in sorted(found.rows.keys() | spans.keys()):
        episode = None
        if index in found.rows:
            try:
                episode = read_row(found.rows[index], found.info, videos, found.root / "meta/episodes")
            except (HotpolicyError, KeyError, TypeError) as error:
                found.note("meta/episodes", f"row {index}: {one_line(error)}", index)
        elif index in found.sealed:
            found.note("meta/episodes", "its row is lost", index)
        if episode is None and index in spans:
            episode = _by_frames(found, index, first, spans[index], reels)
        if episode is not None:
            found.episodes[index] = episode
            first = episode.first + episode.length
            for name, clip in episode.clips.items():
                reels[name].pass_over(clip, episode.length)
    for index in found.sealed:
        if index not in found.episodes:
            found.note("data", "nothing is left of it", index)
    frames = sum(e.length for e in found.episodes.values() if e.index in found.sealed)
    if frames != found.info.total_frames:
        found.note(layout.INFO, f"counts {found.info.total_frames} frames, the episodes have {frames}")


def _spans(found: Survey) -> dict[int, tuple[str, int]]:
    """Episode -> its file and frames, of every data file that can be read."""
    spans: dict[int, tuple[str, int]] = {}
    for path in sorted((found.root / "data").glob("*/*.parquet")):
        file = str(path.relative_to(found.root))
        try:
            counts = pc.value_counts(layout.load_table(path, ["episode_index"]).column("episode_index"))
        except DatasetError as error:
            found.note(file, error, _owner(found, file))
            continue
        spans |= {entry["values"]: (file, entry["counts"]) for entry in counts.to_pylist()}
    return spans


def _owner(found: Survey, file: str) -> int | None:
    """The one episode whose rows a file holds, where metadata says that there is one."""
    owners = [
        index
        for index, row in found.rows.items()
        if file == layout.DATA.format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
    ]
    return owners[0] if len(owners) == 1 else None


def _by_frames(
    found: Survey, index: int, first: int, span: tuple[str, int], reels: Mapping[str, Reel]
) -> EpisodeInfo | None:
    file, length = span
    record = layout.load_record(found.root / file)
    optional = [layout.INTERVENTION, layout.SUCCESS]
    rows = layout.load_table(
        found.root / file, ["task_index"], optional=optional, filters=[("episode_index", "=", index)]
    )
    task = record.get("task") or _task_named(found, rows.column("task_index")[0].as_py())
    clips = {name: reel.next(length) for name, reel in reels.items()}
    if task is None or None in clips.values():
        found.note(file, "its task is lost" if task is None else "its frames in the videos cannot be told", index)
        return None
    flags = rows.column(layout.INTERVENTION).to_pylist() if layout.INTERVENTION in rows.column_names else []
    success = record.get("success")
    if not record and layout.SUCCESS in rows.column_names:
        success = any(rows.column(layout.SUCCESS).to_pylist())
    return EpisodeInfo(
        index, length, task, first, file, {name: clip for name, clip in clips.items() if clip}, success, sum(flags)
    )  # fmt: skip


def _task_named(found: Survey, number: int) -> str | None:
    try:
        return layout.load_tasks(found.root)[number]
    except (DatasetError, IndexError):
        return None


class Reel:
    """A camera's videos in the order they were written, for episodes whose place in them is not noted."""

    def __init__(self, root: Path, column: str, info: Info):
        self._fps = info.fps
        self._frames: dict[str, int] = {}
        for path in sorted((root / "videos" / column).glob("*/*.mp4")):
            try:
                self._frames[str(path.relative_to(root))] = count_frames(path)
            except (av.FFmpegError, IndexError, OSError):
                self._frames[str(path.relative_to(root))] = 0
        self._at: tuple[str, int] | None = None  # file, and frames of it that are passed

    def pass_over(self, clip: Clip, length: int) -> None:
        self._at = clip.file, round(clip.start * self._fps) + length

    def next(self, length: int) -> Clip | None:
        """Where the next `length` frames are; None when the videos do not have them."""
        files = list(self._frames)
        file, passed = self._at or (files[0] if files else "", 0)
        if file in self._frames and passed and passed >= self._frames[file]:
            file, passed = next(iter(files[files.index(file) + 1 :]), ""), 0
        if self._frames.get(file, 0) < passed + length:
            return None
        return Clip(file, passed / self._fps)
