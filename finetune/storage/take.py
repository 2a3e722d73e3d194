"""The episode being recorded: numbers in memory, camera frames compressed as they come, each camera in its lane."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from hotpolicy.finetune.storage import layout
from hotpolicy.finetune.storage.disk import require_room
from hotpolicy.finetune.storage.encoders import EncoderProcess
from hotpolicy.finetune.storage.images import Codec, VideoWriter, count_frames
from hotpolicy.finetune.storage.lane import Lane, Pngs
from hotpolicy.finetune.storage.layout import Info
from hotpolicy.finetune.storage.remote_lane import RemoteLane
from hotpolicy.finetune.storage.spill import Spill
from hotpolicy.finetune.storage.stats import Stats, of_numbers
from hotpolicy.runtime.messages import Step

log = logging.getLogger(__name__)

Encoding = Literal["auto", "process", "thread"]  # where videos are encoded

ROOM = 64e6  # bytes of frames, of all cameras together, that wait in memory for their encoders
BRISK = 2_000_000  # pixels a second of all videos together, from which on encoding is worth a process of its own


class Take:
    """Frames of one episode on their way to disk. Knows the columns, not where sealed files go."""

    def __init__(self, task: str, folder: Path, info: Info, codec: Codec, encoders: EncoderProcess | None = None):
        """`encoders`: where videos are encoded; None: in threads of this process."""
        self.task = task
        self.versions: list[str | None] = []  # (frames,)
        self._info = info
        self._vectors: dict[str, list[np.ndarray]] = {layout.STATE: [], layout.ACTION: [], layout.REQUESTED: []}
        self._interventions: list[bool] = []
        self._folder = folder
        self._pngs: dict[str, Pngs] = {}
        self._videos: dict[str, Path] = {}
        self._lanes: dict[str, Lane | RemoteLane] = {}
        cameras = {name: feature for name, feature in info.features.items() if name.startswith(layout.IMAGES)}
        for column, feature in cameras.items():
            height, width, _ = feature["shape"]
            spill = Spill(folder / f"{column}.spill", (height, width, 3))
            if feature["dtype"] == "image":
                pngs = self._pngs[column] = Pngs()
                self._lanes[column] = Lane(column, pngs, spill, ROOM / len(cameras))
                continue
            # of this process: an encoder that outlives a killed recorder for a moment must not meet the next one
            path = self._videos[column] = folder / f"{column}.{os.getpid()}.mp4"
            if encoders is None:
                writer = VideoWriter(path, height, width, info.fps, codec)
                self._lanes[column] = Lane(column, writer, spill, ROOM / len(cameras))
            else:
                self._lanes[column] = RemoteLane(encoders, column, path, info.fps, codec, spill)

    def __len__(self) -> int:
        return len(self.versions)

    def add(self, step: Step) -> None:
        """Take one frame, already checked; its images are the take's to keep. Raises OSError or FFmpegError when the
        disk is full or refuses."""
        require_room(self._folder)
        behind = [
            column.removeprefix(layout.IMAGES)
            for column, lane in self._lanes.items()
            if lane.add(step.observation.images[column.removeprefix(layout.IMAGES)]) and lane.spilled == 1
        ]
        if behind:
            log.warning("frame %d: encoding is behind, frames of %s wait on disk", len(self), ", ".join(behind))
        # copies, because a driver may write its next reading into the same array
        self._vectors[layout.STATE].append(step.observation.state.copy())
        self._vectors[layout.ACTION].append(step.action.copy())
        self._vectors[layout.REQUESTED].append(step.requested.copy())
        self._interventions.append(step.intervention)
        self.versions.append(step.version)

    @property
    def spilled(self) -> int:
        """Camera frames that had to wait on disk."""
        return sum(lane.spilled for lane in self._lanes.values())

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
        """The episode's parquet rows, columns in the order of the features; after `finish`."""
        arrays: dict[str, Any] = {column: _arrow(values) for column, values in columns.items()}
        picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # as LeRobot embeds an image
        for column, pngs in self._pngs.items():
            named = [{"bytes": png, "path": f"frame-{i:06d}.png"} for i, png in enumerate(pngs.contents)]
            arrays[column] = pa.array(named, picture)
        return pa.table({column: arrays[column] for column in self._info.features if column in arrays})

    def stats(self, columns: Mapping[str, np.ndarray]) -> dict[str, Stats]:
        """Statistics of every column; after `finish`."""
        numbers = {column: of_numbers(values) for column, values in columns.items()}
        return numbers | {column: lane.levels.stats() for column, lane in self._lanes.items()}

    def finish(self) -> dict[str, Path]:
        """Wait for the encoders and close the videos; column -> finished mp4. Raises OSError or FFmpegError when the
        disk did not take all of it."""
        if self.spilled:
            log.info("%d camera frames had to wait on disk; compressing the last of them", self.spilled)
        for lane in self._lanes.values():
            lane.finish()
        for path in self._videos.values():
            if (found := count_frames(path)) != len(self):
                raise OSError(errno.EIO, f"expected {len(self)} frames in the video, found {found}", str(path))
        return dict(self._videos)

    def abandon(self) -> None:
        """Let go of everything; harmless after `finish`."""
        for lane in self._lanes.values():
            lane.abandon()


def encoders_for(info: Info, encoding: Encoding) -> EncoderProcess | None:
    """The process that encodes the videos of such a dataset; None: threads do. Raises OSError when it cannot start."""
    videos = {column: feature for column, feature in info.features.items() if feature["dtype"] == "video"}
    shapes = {column: (feature["shape"][0], feature["shape"][1], 3) for column, feature in videos.items()}
    brisk = sum(height * width for height, width, _ in shapes.values()) * info.fps >= BRISK
    if not shapes or encoding == "thread" or (encoding == "auto" and not brisk):
        return None
    cameras = sum(column.startswith(layout.IMAGES) for column in info.features)
    return EncoderProcess(shapes, ROOM / cameras)


def _arrow(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
