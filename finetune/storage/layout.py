"""Where LeRobotDataset v3.0 keeps things on disk, and how we write there: whole files or none."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from hotpolicy.runtime.errors import ConfigError, DatasetError
from hotpolicy.runtime.messages import CameraSpec, RobotSpec

Storage = Literal["auto", "image", "video"]  # of camera frames: PNG inside parquet (lossless), or mp4

VERSION = "v3.0"
WORK = ".recording"  # folder in a dataset for what is not sealed, and the recorder's lock
INFO, STATS, TASKS, EXTRA = "meta/info.json", "meta/stats.json", "meta/tasks.parquet", "meta/hotpolicy.json"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
CHUNK_FILES = 1000  # files in one chunk folder

STATE, ACTION, IMAGES = "observation.state", "action", "observation.images."
REQUESTED = "requested_action"  # not "action.requested": LeRobot takes every "action..." column for a policy output
INTERVENTION, SUCCESS, POLICY = "intervention", "next.success", "policy_version"
NO_POLICY = -1  # in the column policy_version: a person or a script acted; else an index into hotpolicy.json's names
JUDGEMENT = "hotpolicy/success"  # in meta/episodes: true, false, or null when nobody judged
RECORD = b"hotpolicy"  # key of an episode's record in the metadata of its parquet schema
COUNTERS = ("timestamp", "frame_index", "episode_index", "index", "task_index")  # LeRobot's own columns

SMALL = 128 * 128  # pixels up to which "auto" keeps frames as PNG: lossless, and quicker than a video of that size


@dataclass(frozen=True, slots=True)
class Info:
    """`meta/info.json`. It is written last, so its counts say what is sealed."""

    fps: int
    features: Mapping[str, Mapping[str, Any]]  # column -> {"dtype", "shape", "names", ...}
    total_episodes: int = 0
    total_frames: int = 0
    total_tasks: int = 0
    robot_type: str | None = None
    chunks_size: int = CHUNK_FILES
    data_path: str = DATA
    video_path: str | None = VIDEO
    other: Mapping[str, Any] = field(default_factory=dict)  # keys we keep but do not use

    def to_dict(self) -> dict[str, Any]:
        known = {name: getattr(self, name) for name in self.__slots__ if name != "other"}
        return {
            "codebase_version": VERSION,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            **self.other,
            **known,
            "splits": {"train": f"0:{self.total_episodes}"},
        }

    @classmethod
    def load(cls, root: Path) -> Info:
        """Raises DatasetError when the file is missing, torn, of another version or without a needed field."""
        if not root.is_dir():
            raise DatasetError(f"{root}: expected a dataset folder, found {'a file' if root.exists() else 'nothing'}")
        data = load_json(root, INFO)
        version = data.get("codebase_version")
        if version != VERSION:
            raise DatasetError(f"{root}: expected LeRobotDataset {VERSION}, got version {version!r}")
        known = {name: data[name] for name in cls.__slots__ if name in data and name != "other"}
        other = {name: value for name, value in data.items() if name not in known}
        try:
            info = cls(**known, other=other)
        except TypeError as error:
            raise DatasetError(f"{root / INFO}: {error}") from error
        counts = (info.fps, info.total_episodes, info.total_frames, info.total_tasks, info.chunks_size)
        if not all(isinstance(count, int) and count >= 0 for count in counts) or info.fps < 1 or info.chunks_size < 1:
            raise DatasetError(f"{root / INFO}: expected whole counts and fps above 0, got {counts}")
        if not isinstance(info.features, dict) or not all(
            isinstance(f, dict) and {"dtype", "shape"} <= f.keys() for f in info.features.values()
        ):
            raise DatasetError(f"{root / INFO}: expected features with dtype and shape")
        return info


def features_of(spec: RobotSpec, storage: Storage, codec: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The columns of a recording of this robot. Raises ConfigError for a camera its storage cannot hold."""
    fps = whole_rate(spec)
    names = [joint.name for joint in spec.joints]
    vector = {"dtype": "float32", "shape": [len(names)], "names": names}
    features: dict[str, dict[str, Any]] = {ACTION: vector, STATE: dict(vector), REQUESTED: dict(vector)}
    for camera in spec.cameras:
        if "/" in camera.name:
            raise ConfigError(f"cameras: expected a name without '/', got {camera.name!r}")
        shape = {"shape": [camera.height, camera.width, 3], "names": ["height", "width", "channels"]}
        if storage_of(camera, storage) == "image":
            features[IMAGES + camera.name] = {"dtype": "image", **shape}
        else:
            size = {"video.height": camera.height, "video.width": camera.width, "video.fps": fps}
            features[IMAGES + camera.name] = {"dtype": "video", **shape, "info": {**size, **codec}}
    for name, dtype in ((INTERVENTION, "bool"), (SUCCESS, "bool"), (POLICY, "int64")):
        features[name] = {"dtype": dtype, "shape": [1], "names": None}
    for name in COUNTERS:
        features[name] = {"dtype": "float32" if name == "timestamp" else "int64", "shape": [1], "names": None}
    return features


def storage_of(camera: CameraSpec, storage: Storage) -> Literal["image", "video"]:
    """How this camera's frames are kept. Raises ConfigError for a video of odd size."""
    odd = camera.height % 2 or camera.width % 2
    if storage == "auto":
        return "image" if camera.height * camera.width <= SMALL or odd else "video"
    if storage == "video" and odd:
        raise ConfigError(
            f"cameras.{camera.name}: expected even height and width for video, got {camera.height}x{camera.width}"
        )
    return storage


def whole_rate(spec: RobotSpec) -> int:
    """The control rate as LeRobot stores it. Raises ConfigError when it is not a whole number of Hz."""
    if spec.rate_hz < 1 or spec.rate_hz != int(spec.rate_hz):
        raise ConfigError(f"rate_hz: expected a whole number of Hz to record at, got {spec.rate_hz}")
    return int(spec.rate_hz)


def place_of(file: str) -> dict[str, int]:
    """chunk_index and file_index in a file's name; zeros where it has none."""
    numbers = re.search(r"chunk-(\d+)/file-(\d+)\.", file)
    chunk, number = numbers.groups() if numbers else (0, 0)
    return {"chunk_index": int(chunk), "file_index": int(number)}


def load_json(root: Path, name: str) -> dict[str, Any]:
    """Raises DatasetError when the file is missing or is not a JSON object."""
    try:
        data = json.loads((root / name).read_bytes())
    except FileNotFoundError as error:
        raise DatasetError(f"{root}: {name} is missing, so nothing here is sealed") from error
    except (OSError, ValueError) as error:
        raise DatasetError(f"{root / name}: expected JSON ({error})") from error
    if not isinstance(data, dict):
        raise DatasetError(f"{root / name}: expected a JSON object")
    return data


def load_table(
    path: Path, columns: list[str], *, optional: list[str] | None = None, filters: list[Any] | None = None
) -> pa.Table:
    """Read columns of a parquet file, `optional` ones where they exist. Raises DatasetError when the file is missing,
    torn or lacks a column."""
    try:
        names = pq.read_schema(path).names
        absent = [name for name in columns if name not in names]
        if absent:
            raise DatasetError(f"{path}: expected the columns {', '.join(absent)}")
        chosen = [*columns, *(name for name in optional or () if name in names)]
        return pq.read_table(path, columns=chosen, filters=filters, partitioning=None)
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: missing") from error
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{path}: expected a whole parquet file ({str(error).splitlines()[0]})") from error


def load_tasks(root: Path) -> list[str]:
    """The instructions, by task_index. Raises DatasetError when they are not numbered from zero."""
    names = ["task", "__index_level_0__"]  # pandas calls an unnamed index by the second
    table = load_table(root / TASKS, ["task_index"], optional=names)
    name = next((n for n in names if n in table.column_names), None)
    if name is None or table.column("task_index").to_pylist() != list(range(len(table))):
        raise DatasetError(f"{root / TASKS}: expected the columns task and task_index, numbered from 0")
    return [str(task) for task in table.column(name).to_pylist()]


def tasks_file(tasks: Sequence[str]) -> bytes:
    """`meta/tasks.parquet`, with the metadata by which pandas (so LeRobot) takes the text as the index."""
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    columns = [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
        {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"},
    ]
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [{**column, "metadata": None} for column in columns],
        "pandas_version": "2.3.3",
    }
    return parquet(table.replace_schema_metadata({b"pandas": json.dumps(pandas).encode()}))


def with_record(table: pa.Table, record: Mapping[str, Any]) -> pa.Table:
    """The table with what is to be known of its episode besides the columns, which must be LeRobot's: in the metadata
    of its schema, which other readers pass over."""
    return table.replace_schema_metadata({**(table.schema.metadata or {}), RECORD: json.dumps(record).encode()})


def load_record(path: Path) -> dict[str, Any]:
    """What `with_record` put into a file; {} in files of others. Raises DatasetError when the file is torn."""
    try:
        return dict(json.loads((pq.read_schema(path).metadata or {}).get(RECORD, b"{}")))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DatasetError(f"{path}: expected a whole parquet file ({str(error).splitlines()[0]})") from error


def parquet(table: pa.Table) -> bytes:
    """The table as one parquet file with one row group."""
    buffer = BytesIO()
    pq.write_table(table, buffer, compression="snappy", row_group_size=max(1, len(table)))
    return buffer.getvalue()


def json_file(data: Any) -> bytes:
    return json.dumps(data, indent=1).encode() + b"\n"


def digest(content: Any) -> str:
    """sha256 of data, by its one canonical spelling as JSON."""
    return sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
