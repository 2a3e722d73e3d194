"""Writes demonstrations as a LeRobotDataset v3.0, one sealed episode at a time.

An episode is sealed when `meta/info.json` counts it, and that file is replaced last, after everything it counts is on
disk. Each episode has files of its own, which are never touched again; so a kill or a power cut at any moment costs
at most the episode in progress.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import filelock

from hotpolicy.finetune.episodes import Episode, check_step
from hotpolicy.finetune.storage import layout
from hotpolicy.finetune.storage.disk import make_folder, put, require_room, told
from hotpolicy.finetune.storage.encoders import EncoderProcess
from hotpolicy.finetune.storage.images import Codec, codec_named
from hotpolicy.finetune.storage.layout import WORK, Info, Storage
from hotpolicy.finetune.storage.sealed import Sealed
from hotpolicy.finetune.storage.take import Encoding, Take, encoders_for
from hotpolicy.runtime.errors import BadRequest, DatasetError
from hotpolicy.runtime.messages import RobotSpec, Step

log = logging.getLogger(__name__)

# What numpy, pyarrow and PyAV import when an episode is first sealed: 50 ms for which a robot's loop would stand still.
LATE = ("numpy.ma", "dateutil.relativedelta", "av.subtitles.stream")


class Recorder:
    """Appends episodes to a dataset folder: `begin`, `step` for every frame, then `save` or `discard`.

    `save` returns only when the episode is durable. Used by one thread at a time; one recorder per folder.
    """

    def __init__(self, root: Path, spec: RobotSpec, codec: Codec, lock: filelock.BaseFileLock, encoding: Encoding):
        self.root = root
        self.spec = spec
        self._codec = codec
        self._lock = lock
        self._taking: Take | None = None
        self._fault: Exception | None = None  # why the episode in progress is lost
        for name in LATE:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        self._sealed, self.repaired = Sealed.load(root, spec)  # `repaired`: what had to be put right
        self._encoding = encoding
        self._encoders = self._start_encoders()
        if self._encoders:
            self._encoders.wait_ready()  # no episode is to begin with frames that wait for it

    @classmethod
    def open(
        cls,
        root: str | Path,
        spec: RobotSpec,
        *,
        storage: Storage = "auto",
        codec: str = "h264",
        robot_type: str = "so_follower",
        encoding: Encoding = "auto",
    ) -> Recorder:
        """Create a dataset, or go on with one recorded on the same robot, back at its last sealed state.

        `storage` "image" keeps frames as PNG inside parquet (lossless), "video" as mp4, "auto" decides by camera
        size; `codec` is "h264" or "av1". A dataset that exists keeps its own storage ("auto") and codec. Videos are
        encoded in a "process" of their own or in a "thread"; "auto" spares small ones the process.
        Raises ConfigError for a robot that cannot be recorded so, DatasetError when the folder is no dataset, is
        damaged, is in use or has other columns.
        """
        root = Path(root)
        features = layout.features_of(spec, storage, codec_named(codec).to_dict())  # refuses before anything is made
        if root.exists() and not (root / layout.INFO).exists():
            found = (
                [entry.name for entry in root.iterdir() if entry.name not in (WORK, "meta")] if root.is_dir() else "."
            )
            if found:
                raise DatasetError(f"{root}: expected a dataset or an empty folder, found {found[0]}")
        new = not root.exists()
        try:
            if not (root / layout.INFO).exists():  # else what a crash left may fill it, and goes below
                require_room(root)
            make_folder(root / WORK)
            lock = filelock.FileLock(root / WORK / "lock", timeout=0)
            lock.acquire()
        except filelock.Timeout as error:
            raise DatasetError(f"{root}: another recorder has it open") from error
        except OSError as error:
            raise DatasetError(f"{root}: cannot be recorded into ({told(error, root)})") from error
        try:
            if (root / layout.INFO).exists():
                codec = _same_columns(root, spec, storage) or codec
            else:
                info = Info(fps=layout.whole_rate(spec), features=features, robot_type=robot_type)
                put(root / layout.INFO, layout.json_file(info.to_dict()))
            recorder = cls(root, spec, codec_named(codec), lock, encoding)
        except BaseException as error:
            if new:
                shutil.rmtree(root, ignore_errors=True)
            lock.release()
            if isinstance(error, OSError):
                raise DatasetError(f"{root}: cannot be recorded into ({told(error, root)})") from error
            raise
        return recorder

    def begin(self, task: str) -> None:
        """Start an episode. Raises BadRequest for an empty task or while another is being taken, DatasetError when the
        disk is full."""
        if not task.strip():
            raise BadRequest("task: expected an instruction, got an empty one")
        if self._taking:
            raise BadRequest("episode: expected save or discard of the one in progress first")
        try:
            require_room(self.root)
            if self._encoders and (how := self._encoders.over):
                log.warning("%s: starting another encoder process; the last one is over: %s", self.root, how)
                self._encoders.close()
                self._encoders = self._start_encoders()
            self._taking = Take(task, self.root / WORK, self._sealed.info, self._codec, self._encoders)
        except (OSError, av.FFmpegError) as error:
            raise DatasetError(
                f"{self.root}: episode {len(self)} cannot be begun ({told(error, self.root)})"
            ) from error

    def step(self, step: Step) -> None:
        """Take one frame; its images are the recorder's to keep. Never waits for an encoder: what they are behind with
        waits on disk.

        Raises BadRequest when it does not fit the robot or the task (the episode may go on without it). A disk that
        refuses costs the episode, not the robot's loop: it is logged at once, and raised by `save`.
        """
        take = self._in_progress()
        check_step(step, self.spec)
        if step.observation.task != take.task:
            raise BadRequest(f"task: expected {take.task!r} throughout the episode, got {step.observation.task!r}")
        if self._fault is not None:
            return
        try:
            take.add(step)
        except (OSError, av.FFmpegError) as error:
            self._fault = error
            lost = f"{self.root}: episode {len(self)} is lost: frame {len(take)} could not be kept"
            log.error("%s (%s)", lost, told(error, self.root))

    def save(self, success: bool | None = None) -> int:
        """Seal the episode and return its number. Raises BadRequest when it has no frames, DatasetError when the disk
        refuses: then that episode is lost, the sealed ones are not, and recording may go on."""
        take = self._in_progress()
        if self._fault is not None:
            fault, kept, said = self._fault, len(take), told(self._fault, self.root)
            self.discard()
            raise DatasetError(
                f"{self.root}: a frame of episode {len(self)} could not be kept, after {kept} that were ({said})"
            ) from fault
        if not len(take):
            self.discard()
            raise BadRequest("episode: expected at least one frame to save, got none")
        try:
            self._sealed = self._sealed.add(take, success)
            return len(self) - 1
        except (OSError, av.FFmpegError) as error:
            raise DatasetError(f"{self.root}: episode {len(self)} was not sealed ({told(error, self.root)})") from error
        finally:
            self.discard()

    def discard(self) -> None:
        """Forget the episode in progress, if there is one."""
        take, self._taking, self._fault = self._taking, None, None
        if take:
            take.abandon()

    def write(self, episode: Episode) -> int:
        """Record a whole episode from memory; returns its number. Raises as `step` and `save` do."""
        self.begin(episode.task)
        try:
            for step in episode.steps():
                self.step(step)
        except BadRequest:
            self.discard()
            raise
        return self.save(episode.success)

    def close(self) -> None:
        """Let go of the folder; an episode in progress is discarded."""
        self.discard()
        if self._encoders:
            self._encoders.close()
        self._lock.release()

    def __len__(self) -> int:
        """Sealed episodes."""
        return self._sealed.info.total_episodes

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _in_progress(self) -> Take:
        if self._taking is None:
            raise BadRequest("episode: expected begin first")
        return self._taking

    def _start_encoders(self) -> EncoderProcess | None:
        try:
            return encoders_for(self._sealed.info, self._encoding)
        except OSError as error:
            raise DatasetError(f"{self.root}: no encoder process can be started ({error})") from error


def _same_columns(root: Path, spec: RobotSpec, storage: Storage) -> str | None:
    """The codec of the videos recorded so far. Raises DatasetError when the dataset was recorded on another robot, at
    another rate or in another storage."""
    info = Info.load(root)
    if info.fps != layout.whole_rate(spec):
        raise DatasetError(f"{root}: recorded at {info.fps} Hz, this robot runs at {spec.rate_hz:g} Hz")
    wanted = layout.features_of(spec, storage, {})
    for column in sorted(wanted.keys() | info.features.keys()):
        ours, theirs = (_shape(columns.get(column), storage) for columns in (wanted, info.features))
        if ours != theirs:
            raise DatasetError(f"{root}: column {column}: recorded as {theirs}, this robot gives {ours}")
    codecs = [(feature.get("info") or {}).get("video.codec") for feature in info.features.values()]
    return next((codec for codec in codecs if codec), None)


def _shape(feature: Mapping[str, Any] | None, storage: Storage) -> tuple[Any, ...] | None:
    if feature is None:
        return None
    dtype = "camera" if storage == "auto" and feature["dtype"] in ("image", "video") else feature["dtype"]
    return dtype, list(feature["shape"]), feature.get("names")
