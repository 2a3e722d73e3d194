"""What a dataset folder says of its episodes, checked against the files that are there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hotpolicy.finetune.storage import layout
from hotpolicy.finetune.storage.layout import Info
from hotpolicy.finetune.storage.stats import Stats, merge_columns
from hotpolicy.runtime.errors import DatasetError


@dataclass(frozen=True, slots=True)
class Clip:
    """Where one camera's frames of an episode are."""

    file: str  # relative to the dataset
    start: float  # s into the mp4


@dataclass(frozen=True, slots=True)
class EpisodeInfo:
    """What is known of an episode without reading its frames."""

    index: int
    length: int  # frames
    task: str
    first: int  # number of its first frame in the whole dataset
    file: str  # its rows, relative to the dataset
    clips: Mapping[str, Clip]  # camera -> clip; only cameras stored as video
    success: bool | None  # None: not recorded
    interventions: int  # frames in which a person had taken over

    @property
    def files(self) -> list[str]:
        return [self.file, *(clip.file for clip in self.clips.values())]

    @property
    def places(self) -> list[dict[str, int]]:
        """chunk_index and file_index of each of `files`."""
        return [layout.place_of(file) for file in self.files]


def camera_columns(info: Info) -> dict[str, str]:
    """Camera name -> column, for the colour images of a dataset."""
    columns = {}
    for column, feature in info.features.items():
        depth = (feature.get("info") or {}).get("is_depth_map") or 3 not in feature["shape"]
        if feature["dtype"] in ("image", "video") and not depth:
            columns[column.removeprefix(layout.IMAGES).removeprefix("observation.")] = column
    return columns


def joint_names(info: Info, column: str) -> tuple[str, ...]:
    """The names of a vector column; LeRobot keeps them as a list, or under one group name."""
    if column not in info.features:
        raise DatasetError(f"expected the column {column}")
    names, shape = info.features[column].get("names"), info.features[column]["shape"]
    if isinstance(names, dict):
        names = [name for group in names.values() for name in (group if isinstance(group, list) else [group])]
    if not names or len(names) != shape[0]:
        return tuple(f"{i}" for i in range(shape[0]))
    return tuple(str(name) for name in names)


def load_episodes(root: Path, info: Info) -> tuple[EpisodeInfo, ...]:
    """The sealed episodes in order. Raises DatasetError when there are gaps or the counts of info.json do not match."""
    videos = {
        name: column for name, column in camera_columns(info).items() if info.features[column]["dtype"] == "video"
    }
    needed = ["episode_index", "tasks", "length", "data/chunk_index", "data/file_index", "dataset_from_index"]
    for column in videos.values():
        needed += [f"videos/{column}/{part}" for part in ("chunk_index", "file_index", "from_timestamp")]
    judged = [layout.JUDGEMENT, f"stats/{layout.SUCCESS}/max", f"stats/{layout.INTERVENTION}/mean"]
    episodes: list[EpisodeInfo] = []
    frames = 0
    for path in _episode_files(root):
        for row in layout.load_table(path, needed, optional=judged).to_pylist():
            if len(episodes) == info.total_episodes:
                break  # beyond this nothing is sealed
            episode = read_row(row, info, videos, path)
            if episode.index != len(episodes) or episode.first != frames:
                raise DatasetError(
                    f"{path}: expected episode {len(episodes)} from frame {frames}, "
                    f"found episode {episode.index} from frame {episode.first}"
                )
            episodes.append(episode)
            frames += episode.length
    if (len(episodes), frames) != (info.total_episodes, info.total_frames):
        raise DatasetError(
            f"{root}: meta/info.json counts {info.total_episodes} episodes and {info.total_frames} frames, "
            f"meta/episodes has {len(episodes)} and {frames}"
        )
    return tuple(episodes)


def load_stats(root: Path, episodes: int) -> dict[str, Stats]:
    """Statistics per column, merged from those of the first `episodes` episodes."""
    found: list[dict[str, Stats]] = []
    for path in _episode_files(root):
        names = [name for name in pq.read_schema(path).names if name.startswith("stats/")]
        for row in layout.load_table(path, names).to_pylist()[: episodes - len(found)]:
            columns: dict[str, Stats] = defaultdict(dict)
            for name, value in row.items():
                _, column, statistic = name.split("/", 2)
                columns[column][statistic] = np.array(value)
            found.append(columns)
    return merge_columns(found)


def _episode_files(root: Path) -> list[Path]:
    return sorted((root / "meta/episodes").glob("*/*.parquet"))


def read_row(row: Mapping[str, Any], info: Info, videos: Mapping[str, str], path: Path) -> EpisodeInfo:
    """An episode by its row of `meta/episodes`; `videos`: camera -> column. Raises DatasetError."""
    tasks = row["tasks"]
    if len(tasks) != 1:
        raise DatasetError(f"{path}: episode {row['episode_index']}: expected one task, got {len(tasks)}")
    clips = {}
    for name, column in videos.items():
        place = {part: row[f"videos/{column}/{part}"] for part in ("chunk_index", "file_index", "from_timestamp")}
        file = str(info.video_path).format(
            video_key=column, chunk_index=place["chunk_index"], file_index=place["file_index"]
        )
        clips[name] = Clip(file, float(place["from_timestamp"]))
    achieved, human = row.get(f"stats/{layout.SUCCESS}/max"), row.get(f"stats/{layout.INTERVENTION}/mean")
    judgement = row[layout.JUDGEMENT] if layout.JUDGEMENT in row else (achieved and bool(achieved[0]))
    return EpisodeInfo(
        index=row["episode_index"],
        length=row["length"],
        task=tasks[0],
        first=row["dataset_from_index"],
        file=info.data_path.format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]),
        clips=clips,
        success=judgement,
        interventions=round(human[0] * row["length"]) if human else 0,
    )


def write_row(episode: EpisodeInfo, fps: int, place: Mapping[str, int], episode_stats: Mapping[str, Stats]) -> pa.Table:
    """The episode's row of `meta/episodes`, which goes to the file at `place`. Its clips are here by column."""
    row: dict[str, Any] = {
        "episode_index": episode.index,
        "tasks": [episode.task],
        "length": episode.length,
        **{f"data/{name}": number for name, number in layout.place_of(episode.file).items()},
        "dataset_from_index": episode.first,
        "dataset_to_index": episode.first + episode.length,
    }
    for column, clip in episode.clips.items():
        row |= {f"videos/{column}/{name}": number for name, number in layout.place_of(clip.file).items()}
        row[f"videos/{column}/from_timestamp"] = clip.start
        row[f"videos/{column}/to_timestamp"] = clip.start + episode.length / fps
    for column, parts in episode_stats.items():
        row |= {f"stats/{column}/{name}": value.tolist() for name, value in parts.items()}
    row |= {f"meta/episodes/{name}": number for name, number in place.items()}
    arrays: dict[str, Any] = {name: pa.array([value]) for name, value in row.items()}
    return pa.table({**arrays, layout.JUDGEMENT: pa.array([episode.success], pa.bool_())})


def check_files(root: Path, info: Info, episodes: Sequence[EpisodeInfo]) -> None:
    """Raises DatasetError unless every file is there and every parquet footer counts the rows that are promised."""
    rows: dict[str, int] = defaultdict(int)
    for episode in episodes:
        rows[episode.file] += episode.length
        for clip in episode.clips.values():
            if not (root / clip.file).is_file():
                raise DatasetError(f"{root / clip.file}: missing")
    columns = {name for name, feature in info.features.items() if feature["dtype"] != "video"}
    for file, expected in rows.items():
        try:
            footer = pq.read_metadata(root / file)
        except FileNotFoundError as error:
            raise DatasetError(f"{root / file}: missing") from error
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(f"{root / file}: expected a whole parquet file ({error})") from error
        if footer.num_rows < expected:
            raise DatasetError(f"{root / file}: expected {expected} rows, found {footer.num_rows}")
        absent = columns - set(footer.schema.to_arrow_schema().names)
        if absent:
            raise DatasetError(f"{root / file}: expected the columns {', '.join(sorted(absent))}")
