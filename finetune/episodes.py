"""An episode in memory: what a recorder takes, what a reader gives back, and the checks at the door."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hotpolicy.runtime.errors import BadRequest
from hotpolicy.runtime.messages import Observation, RobotSpec, Step


@dataclass(frozen=True, slots=True)
class Episode:
    """One attempt at one task, frame by frame at the robot's rate."""

    task: str
    images: Mapping[str, np.ndarray]  # camera -> (frames, height, width, 3) uint8 RGB; only the cameras asked for
    state: np.ndarray  # (frames, joints) float32, units of the RobotSpec
    action: np.ndarray  # (frames, joints) float32, what the robot was told, after the limits
    requested: np.ndarray  # (frames, joints) float32, what was wished for, before the limits
    intervention: np.ndarray  # (frames,) bool, a person had taken over
    versions: tuple[str | None, ...]  # (frames,) policy bundle behind each action; None: a person or a script
    success: bool | None  # None: nobody judged it

    def __len__(self) -> int:
        return len(self.state)

    def steps(self) -> Iterator[Step]:
        """The frames one by one, as a control loop would hand them over."""
        for i in range(len(self)):
            yield Step(
                observation=Observation(
                    images={camera: frames[i] for camera, frames in self.images.items()},
                    state=self.state[i],
                    task=self.task,
                ),
                requested=self.requested[i],
                action=self.action[i],
                version=self.versions[i],
                intervention=bool(self.intervention[i]),
            )

    @classmethod
    def from_steps(cls, steps: Sequence[Step], success: bool | None = None) -> Episode:
        """Stack the steps of one attempt. Raises BadRequest for none, or when they differ in task or cameras."""
        if not steps:
            raise BadRequest("episode: expected at least one step, got none")
        first = steps[0].observation
        if any(step.observation.task != first.task for step in steps):
            raise BadRequest("episode: expected one task for all steps")
        if any(step.observation.images.keys() != first.images.keys() for step in steps):
            raise BadRequest(f"episode: expected the cameras {sorted(first.images)} in all steps")
        return cls(
            task=first.task,
            images={camera: np.stack([step.observation.images[camera] for step in steps]) for camera in first.images},
            state=np.stack([step.observation.state for step in steps]),
            action=np.stack([step.action for step in steps]),
            requested=np.stack([step.requested for step in steps]),
            intervention=np.array([step.intervention for step in steps], dtype=bool),
            versions=tuple(step.version for step in steps),
            success=success,
        )


def check_step(step: Step, spec: RobotSpec) -> None:
    """Refuse a step that does not fit the robot. Raises BadRequest naming the field and what was expected."""
    joints = len(spec.joints)
    for name, vector in (
        ("state", step.observation.state),
        ("requested", step.requested),
        ("action", step.action),
    ):
        if vector.shape != (joints,):
            raise BadRequest(f"{name}: expected {joints} joints, got shape {vector.shape}")
        if vector.dtype != np.float32:
            raise BadRequest(f"{name}: expected float32, got {vector.dtype}")
        if not np.isfinite(vector).all():
            raise BadRequest(f"{name}: expected finite numbers, got {vector.tolist()}")
    wanted, given = {camera.name for camera in spec.cameras}, set(step.observation.images)
    if wanted != given:
        raise BadRequest(f"images: expected the cameras {sorted(wanted)}, got {sorted(given)}")
    for camera in spec.cameras:
        image = step.observation.images[camera.name]
        shape = (camera.height, camera.width, 3)
        if image.shape != shape or image.dtype != np.uint8:
            raise BadRequest(f"images.{camera.name}: expected uint8 {shape}, got {image.dtype} {image.shape}")
