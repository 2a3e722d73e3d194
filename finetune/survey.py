"""Everything a dataset folder holds, read as far as it can be: what `check` names and what `repair` can build on.

Where `Dataset.open` stops at the first thing that is wrong, a survey goes on. Metadata that is missing is derived from
the files: our own say what they are (`layout.load_record`), LeRobot's from the order in which it writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hotpolicy.finetune import layout
from hotpolicy.finetune.catalog import Clip, EpisodeInfo, camera_columns, read_row
from hotpolicy.finetune.images import CODECS, count_frames
from hotpolicy.finetune.layout import Info
from hotpolicy.runtime.errors import DatasetError, HotpolicyError
from hotpolicy.runtime.messages import RobotSpec

FEW = 3  # files of a folder that are named one by one


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong."""

    file: str  # relative to the dataset
    what: str
    episode: int | None = None  # None: of the dataset as a whole
    mendable: bool = False  # made again from what is whole, with nothing lost


@dataclass(slots=True)
class Survey:
    """What was found. `episodes` are all that there is a trace of, sealed or not, by number."""

    root: Path
    info: Info
    tasks: list[str]
    extra: Mapping[str, Any]  # meta/hotpolicy.json; {} in datasets of others
    rows: dict[int, Mapping[str, Any]]  # episode -> its row of meta/episodes, where that is whole
    episodes: dict[int, EpisodeInfo] = field(default_factory=dict)
    damages: list[Damage] = field(default_factory=list)  # of the metadata; those of frames are `inspect`'s
    leftovers: list[str] = field(default_factory=list)  # files of recordings that never ended

    @property
    def sealed(self) -> range:
        return range(self.info.total_episodes)

    @property
    def uncounted(self) -> list[int]:
        """Episodes there is a trace of that `info.json` does not count."""
        return [index for index in self.episodes if index not in self.sealed]

    def gathered(self) -> list[str]:
        """The leftovers for people: many in one folder are one line."""
        folders = Counter(str(Path(file).parent) for file in self.leftovers)
        few = [file for file in self.leftovers if folders[str(Path(file).parent)] <= FEW]
        return few + [f"{folder} ({count} files)" for folder, count in folders.items() if count > FEW]

    def note(self, file: str, error: Exception | str, episode: int | None = None) -> None:
        text = str(error).replace(f"{self.root}/", "")
        self.damages.append(Damage(file, text.removeprefix(f"{file}: "), episode))


def survey(root: Path) -> Survey:
    """Raises DatasetError when nothing can be made of the folder: it is none, or its `info.json` is lost and cannot be
    made again."""
    damages: list[Damage] = []
    try:
        info = Info.load(root)
    except DatasetError as error:
        rebuilt = _info_of_files(root) if root.is_dir() else None
        if rebuilt is None:
            raise
        text = str(error).replace(f"{root}/", "").removeprefix(f"{root}: ").removeprefix(f"{layout.INFO}: ")
        damages.append(Damage(layout.INFO, text))
        info = rebuilt
    found = Survey(root, info, [], {}, {}, damages=damages)
    _read_meta(found)
    _find_episodes(found)
    _read_tasks(found)
    _read_extra(found)
    found.leftovers = _leftovers(root)
    return found


def _read_meta(found: Survey) -> None:
    for path in sorted((found.root / "meta/episodes").glob("*/*.parquet")):
        file = str(path.relative_to(found.root))
        try:
            table = layout.load_table(path, ["episode_index"], optional=pq.read_schema(path).names)
        except (DatasetError, OSError, pa.ArrowException) as error:
            found.note(file, _one_line(error))
            continue
        for row in table.to_pylist():
            if row["episode_index"] in found.rows:
                found.note(file, "described twice", row["episode_index"])
            found.rows.setdefault(row["episode_index"], row)


def _find_episodes(found: Survey) -> None:
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
                found.note("meta/episodes", f"row {index}: {_one_line(error)}", index)
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


def _read_tasks(found: Survey) -> None:
    try:
        found.tasks = layout.load_tasks(found.root) if found.episodes else []
    except DatasetError as error:
        found.note(layout.TASKS, error)
        found.tasks = _tasks_of_rows(found)
        return
    used = {e.task for e in found.episodes.values() if e.index in found.sealed}
    for task in sorted(used - set(found.tasks)):
        found.note(layout.TASKS, f"lacks the task {task!r}")
        found.tasks.append(task)
    if len(found.tasks) < found.info.total_tasks:
        found.note(layout.TASKS, f"expected {found.info.total_tasks} tasks, found {len(found.tasks)}")


def _tasks_of_rows(found: Survey) -> list[str]:
    """By the numbers that the frames give them."""
    named: dict[int, str] = {}
    for episode in found.episodes.values():
        try:
            column = layout.load_table(
                found.root / episode.file, ["task_index"], filters=[("episode_index", "=", episode.index)]
            ).column("task_index")
        except DatasetError:
            continue
        if len(column):
            named.setdefault(column[0].as_py(), episode.task)
    return [named.get(number, f"task {number}, of no episode") for number in range(max(named, default=-1) + 1)]


def _read_extra(found: Survey) -> None:
    records = {e.index: _record(found.root / e.file) for e in found.episodes.values()}
    try:
        if (found.root / layout.EXTRA).exists():
            found.extra = layout.load_json(found.root, layout.EXTRA)
        elif any(records.values()):
            found.note(layout.EXTRA, "missing")
    except DatasetError as error:
        found.note(layout.EXTRA, error)
    names = {number: name for record in records.values() for name, number in record.get("versions", {}).items()}
    known = list(found.extra.get("policy_versions", ()))
    longest = max([len(known) - 1, *names])
    versions = [known[i] if i < len(known) else names.get(i, f"version {i}, unknown") for i in range(longest + 1)]
    spec = found.extra.get("spec") or next((record["spec"] for record in records.values() if record), None)
    if spec:
        sums = found.extra.get("sha256", {})
        found.extra = {"schema": 1, "spec": spec, "policy_versions": versions, "sha256": sums}


def _record(path: Path) -> dict[str, Any]:
    try:
        return layout.load_record(path)
    except DatasetError:
        return {}


def _info_of_files(root: Path) -> Info | None:
    """`info.json` made again from what our recorder notes in every episode's file; None for files of others."""
    for path in sorted((root / "data").glob("*/*.parquet")):
        if not (record := _record(path)):
            continue
        spec = RobotSpec.from_dict(record["spec"])
        columns = set(pq.read_schema(path).names)
        names = {camera.name: f"{layout.IMAGES}{camera.name}" for camera in spec.cameras}
        videos = [root / "videos" / column for column in names.values() if column not in columns]
        clip = next((path for folder in videos for path in sorted(folder.glob("*/*.mp4"))), None)
        codec = CODECS["av1" if clip and _codec_of(clip) == "av1" else "h264"].to_dict()
        features = layout.features_of(spec, "image", codec)
        stored = layout.features_of(replace(spec, cameras=()), "image", codec).keys()
        for camera in spec.cameras:
            if names[camera.name] not in columns:
                one = layout.features_of(replace(spec, cameras=(camera,)), "video", codec)
                features[names[camera.name]] = one[names[camera.name]]
        if stored <= columns:
            counts = [pq.read_metadata(file).num_rows for file in _readable(root)]
            return Info(
                layout.whole_rate(spec), features, len(counts), sum(counts),
                robot_type=record.get("robot_type", "so_follower"),
            )  # fmt: skip
    return None


def _readable(root: Path) -> list[Path]:
    files = sorted((root / "data").glob("*/*.parquet"))
    return [path for path in files if _record(path)]


def _codec_of(path: Path) -> str:
    try:
        with av.open(str(path)) as container:
            return container.streams.video[0].codec_context.codec.canonical_name
    except (av.FFmpegError, IndexError):
        return ""


def _leftovers(root: Path) -> list[str]:
    work = [path for path in (root / layout.WORK).glob("**/*") if path.is_file() and path.name != "lock"]
    temporary = [*(root / "meta").glob("**/.*.tmp"), *(p for p in (root / "images").glob("**/*") if p.is_file())]
    return sorted(str(path.relative_to(root)) for path in (*work, *temporary))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
