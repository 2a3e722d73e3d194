"""Episodes made up for the dataset tests, and how to compare them."""

from __future__ import annotations

import numpy as np

from hotpolicy.finetune.episodes import Episode
from hotpolicy.runtime.messages import CameraSpec, Joint, RobotSpec

JOINTS = ("shoulder_pan.pos", "elbow_flex.pos", "gripper.pos")
SPEC = RobotSpec(
    joints=tuple(Joint(name, "deg", -90, 90) for name in JOINTS),
    cameras=(CameraSpec("front", 24, 32), CameraSpec("wrist", 16, 16)),
    rate_hz=10,
)


def episode(seed: int, frames: int = 7, task: str = "touch the red cube", spec: RobotSpec = SPEC) -> Episode:
    """A made-up episode: smooth images, so that video stays close to them."""
    draw = np.random.default_rng(seed)
    images = {}
    for camera in spec.cameras:
        rows, columns = np.mgrid[0 : camera.height, 0 : camera.width]
        ramp = 80 + (rows + columns) * (120 / (camera.height + camera.width))
        frame = np.stack([ramp + tint for tint in (10, 0, -10)], axis=-1)
        images[camera.name] = np.stack([frame + (7 * seed + 5 * i) % 40 for i in range(frames)]).astype(np.uint8)
    state = draw.normal(size=(frames, len(spec.joints))).astype(np.float32) * 20
    return Episode(
        task=task,
        images=images,
        state=state,
        action=state + 1,
        requested=state + 2,
        intervention=draw.random(frames) < 0.3,
        versions=tuple(None if i % 3 == 0 else f"version-{(seed + i) % 3}" for i in range(frames)),
        success=[True, False, None][seed % 3],
    )


def same(read: Episode, written: Episode, pixels: float = 0) -> None:
    assert read.task == written.task
    assert read.versions == written.versions
    assert read.success is written.success
    for name in ("state", "action", "requested", "intervention"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    assert read.images.keys() == written.images.keys()
    for camera, frames in written.images.items():
        assert read.images[camera].shape == frames.shape
        assert np.abs(read.images[camera].astype(int) - frames).mean() <= pixels
