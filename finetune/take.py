"""The episode being recorded: numbers in memory, camera frames compressed as they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hotpolicy.finetune import layout
from hotpolicy.finetune.images import Codec, VideoWriter, to_png
from hotpolicy.finetune.layout import Info
from hotpolicy.finetune.stats import ImageStats, Stats, of_numbers
from hotpolicy.runtime.messages import Step


class Take:
    """Frames of one episode on their way to disk. Knows the columns, not where sealed files go."""

    def __init__(self, task: str, folder: Path, info: Info, codec: Codec):
        self.task = task
        self.versions: list[str | None] = []  # (frames,)
        self._info = info
        self._vectors: dict[str, list[np.ndarray]] = {layout.STATE: [], layout.ACTION: [], layout.REQUESTED: []}
        self._interventions: list[bool] = []
        self._pngs: dict[str, list[bytes]] = {}  # column -> PNG of every frame
        self._videos: dict[str, VideoWriter] = {}
        self._levels: dict[str, ImageStats] = {}
        for column, feature in info.features.items():
            if not column.startswith(layout.IMAGES):
                continue
            self._levels[column] = ImageStats()
            if feature["dtype"] == "image":
                self._pngs[column] = []
            else:
                height, width, _ = feature["shape"]
                self._videos[column] = VideoWriter(folder / f"{column}.mp4", height, width, info.fps, codec)

    def __len__(self) -> int:
        return len(self.versions)

    def add(self, step: Step) -> None:
        """Take one frame, already checked."""
        for column, levels in self._levels.items():
            image = step.observation.images[column.removeprefix(layout.IMAGES)]
            levels.add(image)
            if column in self._videos:
                self._videos[column].add(image)
            else:
                self._pngs[column].append(to_png(image))
        # copies, because a driver may write its next reading into the same array
        self._vectors[layout.STATE].append(step.observation.state.copy())
        self._vectors[layout.ACTION].append(step.action.copy())
        self._vectors[layout.REQUESTED].append(step.requested.copy())
        self._interventions.append(step.intervention)
        self.versions.append(step.version)

    def columns(self, task_index: int, versions: Sequence[str], success: bool | None) -> dict[str, np.ndarray]:
        """The columns of numbers: (frames,) or (frames, joints) each."""
        frames = np.arange(len(self))
        start = self._info.total_frames
        numbers = {version: number for number, version in enumerate(versions)}
        return {
            **{column: np.stack(vectors) for column, vectors in self._vectors.items()},
            layout.INTERVENTION: np.array(self._interventions, dtype=bool),
            layout.SUCCESS: (frames == len(self) - 1) & bool(success),  # as LeRobot: true where the task was achieved
            layout.POLICY: np.array([numbers[v] if v else layout.NO_POLICY for v in self.versions], dtype=np.int64),
            "timestamp": (frames / self._info.fps).astype(np.float32),
            "frame_index": frames,
            "episode_index": np.full(len(self), self._info.total_episodes),
            "index": frames + start,
            "task_index": np.full(len(self), task_index),
        }

    def rows(self, columns: Mapping[str, np.ndarray]) -> pa.Table:
        """The episode's parquet rows, columns in the order of the features."""
        arrays: dict[str, Any] = {column: _arrow(values) for column, values in columns.items()}
        picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # as LeRobot embeds an image
        for column, pngs in self._pngs.items():
            named = [{"bytes": png, "path": f"frame-{i:06d}.png"} for i, png in enumerate(pngs)]
            arrays[column] = pa.array(named, picture)
        return pa.table({column: arrays[column] for column in self._info.features if column in arrays})

    def stats(self, columns: Mapping[str, np.ndarray]) -> dict[str, Stats]:
        numbers = {column: of_numbers(values) for column, values in columns.items()}
        return numbers | {column: levels.stats() for column, levels in self._levels.items()}

    def finish(self) -> dict[str, Path]:
        """Close the videos; column -> finished mp4."""
        for video in self._videos.values():
            video.close()
        return {column: video.path for column, video in self._videos.items()}

    def abandon(self) -> None:
        """Let go of everything; harmless after `finish`."""
        for video in self._videos.values():
            video.abandon()


def _arrow(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
