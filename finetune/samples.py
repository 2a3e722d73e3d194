"""Training samples as a robot recorded them: what was seen, and the next actions that a demonstrator chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from hotpolicy.runtime.errors import DatasetError
from hotpolicy.runtime.messages import RobotSpec
from hotpolicy.runtime.transforms import ImageSlots

if TYPE_CHECKING:
    from hotpolicy.finetune.dataset import Dataset
    from hotpolicy.finetune.episodes import Episode


@dataclass(frozen=True, slots=True)
class Samples:
    """One row per frame; all arrays share the first axis. Units are the robot's: nothing is normalised yet."""

    images: np.ndarray  # (n, cameras, height, width, 3) uint8 RGB: the transforms' cameras, at the model's size
    state: np.ndarray  # (n, joints) float32
    actions: np.ndarray  # (n, horizon, joints) float32, absolute targets
    tasks: np.ndarray  # (n,) fixed-width unicode: instructions

    def __len__(self) -> int:
        return len(self.state)

    def pick(self, rows: np.ndarray) -> Samples:
        return Samples(*(getattr(self, field.name)[rows] for field in fields(self)))

    def task_names(self) -> tuple[str, ...]:
        return tuple(str(task) for task in np.unique(self.tasks))

    def spread(self, limit: int) -> Samples:
        """At most `limit` rows, shared evenly among the tasks, evenly spaced within each."""
        if len(self) <= limit:
            return self
        names = self.task_names()
        shares = [np.flatnonzero(self.tasks == name) for name in names]
        each = max(1, limit // len(names))
        chosen = [rows[np.linspace(0, len(rows) - 1, min(each, len(rows))).astype(int)] for rows in shares]
        return self.pick(np.sort(np.concatenate(chosen)))


def join(parts: Sequence[Samples]) -> Samples:
    """Raises DatasetError when the parts are not of one robot: other cameras, image sizes, joints or horizon."""
    first = parts[0]
    for part in parts[1:]:
        for name in ("images", "state", "actions"):
            expected, got = getattr(first, name).shape[1:], getattr(part, name).shape[1:]
            if expected != got:
                raise DatasetError(f"samples: {name}: expected {expected} in every part, got {got}")
    return Samples(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(first)))


def of_episode(episode: Episode, images: ImageSlots, horizon: int) -> Samples:
    """Every frame that teaches, with the next `horizon` actions; past the end the last action is repeated."""
    spans = taught(episode.intervention)
    frames = np.concatenate([np.arange(span.start, span.stop) for span in spans])
    return Samples(
        images=np.stack([images.fit(episode.images[name][frames]) for name in images.cameras], axis=1),
        state=np.asarray(episode.state[frames], np.float32),
        actions=np.concatenate([chunks(np.asarray(episode.action[span], np.float32), horizon) for span in spans]),
        tasks=np.array([episode.task] * len(frames)),
    )


def taught(intervention: np.ndarray) -> list[slice]:
    """Which frames a policy should learn from: of an episode in which a person took over ((frames,) bool) each
    correction, as an episode of its own, and not what the policy did to need it (HG-DAgger, Kelly et al. 2019,
    arXiv 1810.02890); of any other all of them."""
    if not intervention.any():
        return [slice(0, len(intervention))]
    edges = np.flatnonzero(np.diff(np.concatenate(([False], intervention, [False])).astype(np.int8)))
    return [slice(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def chunks(actions: np.ndarray, horizon: int) -> np.ndarray:
    """(frames, joints) -> (frames, horizon, joints): from each frame on, the last action repeated past the end."""
    frames = len(actions)
    return np.asarray(actions[np.minimum(np.arange(frames)[:, None] + np.arange(horizon), frames - 1)])


def of_dataset(
    dataset: Dataset, episodes: Sequence[int], spec: RobotSpec, images: ImageSlots, horizon: int
) -> Samples | None:
    """The samples of some episodes; None when there are no episodes. Raises DatasetError when the dataset is not
    of this robot, naming what differs."""
    _check_robot(dataset, spec, images.cameras)
    parts = [of_episode(_fitted(dataset, index, images), images, horizon) for index in episodes]
    return join(parts) if parts else None


def _fitted(dataset: Dataset, index: int, images: ImageSlots) -> Episode:
    """An episode whose pictures have the model's size already: one camera's are decoded at a time, because at a
    camera's own size they are many times as large."""
    fitted = {name: images.fit(dataset.episode(index, (name,)).images[name]) for name in images.cameras}
    return replace(dataset.episode(index, ()), images=fitted)


def _check_robot(dataset: Dataset, spec: RobotSpec, cameras: Sequence[str]) -> None:
    wanted = tuple(joint.name for joint in spec.joints)
    if dataset.joints != wanted:
        raise DatasetError(f"{dataset.root}: joints: expected {', '.join(wanted)}, got {', '.join(dataset.joints)}")
    if abs(dataset.rate_hz - spec.rate_hz) > 0.01 * spec.rate_hz:
        raise DatasetError(f"{dataset.root}: rate: expected {spec.rate_hz:g} Hz, got {dataset.rate_hz:g} Hz")
    have = {camera.name: camera for camera in dataset.cameras}
    need = {camera.name: camera for camera in spec.cameras}
    for name in cameras:
        if have.get(name) != need.get(name):
            raise DatasetError(f"{dataset.root}: camera {name}: expected {need.get(name)}, got {have.get(name)}")
