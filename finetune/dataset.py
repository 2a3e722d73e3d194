"""Reads LeRobotDataset v3.0 folders, ours and LeRobot's own, strictly: what is damaged is named, not guessed.

What counts is `meta/info.json`: episodes beyond its counts were not sealed and are not seen, so a dataset may be
read while a recorder appends to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hotpolicy.finetune.episodes import Episode
from hotpolicy.finetune.storage import layout
from hotpolicy.finetune.storage.catalog import (
    EpisodeInfo,
    camera_columns,
    check_files,
    joint_names,
    load_episodes,
    load_stats,
)
from hotpolicy.finetune.storage.images import read_video
from hotpolicy.finetune.storage.layout import Info
from hotpolicy.finetune.storage.rows import embedded, load_rows, numbers
from hotpolicy.finetune.storage.stats import Stats
from hotpolicy.runtime.digest import file_sha256
from hotpolicy.runtime.errors import DatasetError
from hotpolicy.runtime.messages import CameraSpec, RobotSpec


class Dataset:
    """A sealed state of a dataset folder. Opening checks every file's presence and counts, not every byte."""

    def __init__(
        self,
        root: Path,
        info: Info,
        tasks: tuple[str, ...],
        episodes: tuple[EpisodeInfo, ...],
        extra: Mapping[str, Any],
    ):
        self.root = root
        self.info = info
        self.tasks = tasks
        self.episodes = episodes
        self._extra = extra
        self._columns = camera_columns(info)

    @classmethod
    def open(cls, root: str | Path) -> Dataset:
        """Open the sealed episodes under `root`.

        Raises DatasetError, in one line, for a folder that is not a dataset, another version, a file that is missing
        or torn, or counts that do not match.
        """
        root = Path(root)
        info = Info.load(root)
        tasks = tuple(layout.load_tasks(root)) if info.total_tasks else ()
        if len(tasks) < info.total_tasks:
            raise DatasetError(f"{root / layout.TASKS}: expected {info.total_tasks} tasks, found {len(tasks)}")
        extra = layout.load_json(root, layout.EXTRA) if (root / layout.EXTRA).exists() else {}
        episodes = load_episodes(root, info)
        check_files(root, info, episodes)
        return cls(root, info, tasks[: info.total_tasks], episodes, extra)

    def __len__(self) -> int:
        return len(self.episodes)

    def first(self, episodes: int) -> Dataset:
        """The dataset as it was when it had so many episodes. Raises DatasetError when it has fewer."""
        if episodes > len(self):
            raise DatasetError(f"{self.root}: expected at least {episodes} episodes, found {len(self)}")
        return Dataset(self.root, self.info, self.tasks, self.episodes[:episodes], self._extra)

    @property
    def rate_hz(self) -> int:
        return self.info.fps

    @property
    def features(self) -> Mapping[str, Mapping[str, Any]]:
        """Column -> dtype, shape, names, as in info.json."""
        return self.info.features

    @property
    def joints(self) -> tuple[str, ...]:
        """Names of the entries of state and action. Raises DatasetError when there is no action."""
        return joint_names(self.info, layout.ACTION)

    @property
    def cameras(self) -> tuple[CameraSpec, ...]:
        specs = []
        for name, column in self._columns.items():
            shape = list(self.info.features[column]["shape"])
            height, width = shape[1:] if shape[0] == 3 and shape[2] != 3 else shape[:2]
            specs.append(CameraSpec(name, height, width))
        return tuple(specs)

    @property
    def spec(self) -> RobotSpec | None:
        """The robot it was recorded on; None in datasets written by others."""
        return RobotSpec.from_dict(self._extra["spec"]) if "spec" in self._extra else None

    @property
    def versions(self) -> tuple[str, ...]:
        """Policy versions that acted in it."""
        return tuple(self._extra.get("policy_versions", ()))

    @property
    def sums(self) -> Mapping[str, str]:
        """File -> sha256, as it was when sealed; only files our recorder wrote."""
        return self._extra.get("sha256", {})

    def stats(self) -> dict[str, Stats]:
        """Statistics per column over the sealed episodes, merged from each episode's (see `stats.merge`)."""
        return load_stats(self.root, len(self))

    def episode(self, index: int, cameras: Sequence[str] | None = None) -> Episode:
        """Read one episode; `cameras` names those to decode (None: all, (): none, which is quick).

        Raises DatasetError when its rows or frames are not those its metadata promises; IndexError for no such episode.
        """
        info = self.episodes[index]
        rows = self._rows(info, cameras)
        state, action = self._numbers(rows, layout.STATE, info), self._numbers(rows, layout.ACTION, info)
        flags = set(rows.column_names)
        return Episode(
            task=info.task,
            images={name: self._frames(info, name, rows) for name in self._chosen(cameras)},
            state=state.astype(np.float32),
            action=action.astype(np.float32),
            requested=self._numbers(rows, layout.REQUESTED, info) if layout.REQUESTED in flags else action,
            intervention=rows.column(layout.INTERVENTION).to_numpy().astype(bool)
            if layout.INTERVENTION in flags
            else np.zeros(info.length, dtype=bool),
            versions=self._names_of_versions(rows) if layout.POLICY in flags else (None,) * info.length,
            success=info.success,
        )

    def column(self, name: str) -> np.ndarray:
        """One column of numbers over all episodes, in order: (frames,) or (frames, n). Raises DatasetError."""
        if name not in self.features or self.features[name]["dtype"] in ("image", "video", "string"):
            raise DatasetError(f"{self.root}: expected a column of numbers, got {name!r}")
        return np.concatenate(
            [self._numbers(self._table(info, [name]), name, info) for info in self.episodes]
            or [np.zeros((0, *self.features[name]["shape"]), dtype=np.float32)]
        )

    @cached_property
    def digest(self) -> str:
        """sha256 over columns, tasks and every sealed file: the name of this content in a policy's provenance."""
        content = {
            "fps": self.info.fps,
            "features": self.info.features,
            "episodes": [
                {
                    "task": e.task,
                    "length": e.length,
                    "first": e.first,
                    "files": {file: self._sha256(file) for file in e.files},
                    "starts": [clip.start for clip in e.clips.values()],
                }
                for e in self.episodes
            ],
        }
        return layout.digest(content)

    def verify(self) -> None:
        """Hash every file that was recorded with a hash. Raises DatasetError naming the first that changed."""
        for file in dict.fromkeys(file for info in self.episodes for file in info.files):
            if file in self.sums and file_sha256(self.root / file) != self.sums[file]:
                raise DatasetError(f"{self.root / file}: altered since it was recorded (sha256 differs)")

    def _sha256(self, file: str) -> str:
        return self.sums.get(file) or file_sha256(self.root / file)

    def _chosen(self, cameras: Sequence[str] | None) -> list[str]:
        chosen = list(self._columns) if cameras is None else list(cameras)
        unknown = [name for name in chosen if name not in self._columns]
        if unknown:
            raise DatasetError(f"{self.root}: expected cameras among {list(self._columns)}, got {unknown}")
        return chosen

    def _rows(self, info: EpisodeInfo, cameras: Sequence[str] | None) -> pa.Table:
        wanted = {layout.STATE, layout.ACTION, layout.REQUESTED, layout.INTERVENTION, layout.POLICY}
        pictures = {self._columns[name] for name in self._chosen(cameras) if name not in info.clips}
        for column in (layout.STATE, layout.ACTION):
            if column not in self.features:
                raise DatasetError(f"{self.root}: expected the column {column}")
        return self._table(info, [name for name in self.features if name in wanted | pictures])

    def _table(self, info: EpisodeInfo, columns: list[str]) -> pa.Table:
        return load_rows(self.root, info, columns)

    def _numbers(self, rows: pa.Table, name: str, info: EpisodeInfo) -> np.ndarray:
        return numbers(rows, name, tuple(self.features[name]["shape"]), self.root / info.file)

    def _names_of_versions(self, rows: pa.Table) -> tuple[str | None, ...]:
        numbers = rows.column(layout.POLICY).to_pylist()
        if max(numbers, default=-1) >= len(self.versions):
            raise DatasetError(
                f"{self.root / layout.EXTRA}: expected a name for policy version {max(numbers)}, "
                f"found {len(self.versions)} names"
            )
        return tuple(self.versions[number] if number >= 0 else None for number in numbers)

    def _frames(self, info: EpisodeInfo, camera: str, rows: pa.Table) -> np.ndarray:
        spec = next(spec for spec in self.cameras if spec.name == camera)
        if camera in info.clips:
            clip = info.clips[camera]
            times = [i / self.rate_hz for i in range(info.length)]
            frames, file = read_video(self.root / clip.file, clip.start, times), clip.file
        else:
            frames, file = embedded(rows.column(self._columns[camera]), self.root / info.file), info.file
        if frames.shape[1:] != (spec.height, spec.width, 3):
            raise DatasetError(
                f"{self.root / file}: expected {camera} images of {spec.height}x{spec.width}, got {frames.shape[1:]}"
            )
        return frames
