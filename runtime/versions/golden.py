"""Golden observations: fixed inputs, with fixed noise, on which a candidate must prove itself before it serves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.messages import Observation, RobotSpec
from hotpolicy.runtime.npz import read_npz

FILE = "golden.npz"
IDLE = "hold still"  # an instruction that any tokenizer takes
GREY = 128
ARRAYS = ("images", "state", "tasks", "noise")


@dataclass(frozen=True)
class Golden:
    """n observations. Cameras are in the spec's order and share one array: where their sizes differ, it is as high
    and as wide as the largest, and each picture is in its top left corner."""

    images: np.ndarray  # (n, cameras, height, width, 3) uint8 RGB
    state: np.ndarray  # (n, joints) float32, units of the RobotSpec
    tasks: np.ndarray  # (n,) fixed-width unicode: instructions
    noise: np.ndarray  # (n, horizon, width) float32: where the flow starts, so that answers can be compared

    def __post_init__(self) -> None:
        """Raises BundleError naming the array that is of the wrong shape or dtype, or not finite."""
        n = len(self.tasks) if self.tasks.ndim == 1 else -1
        _expect(self.tasks, "tasks", self.tasks.dtype.kind == "U" and n > 0, "(n,) fixed-width unicode, n > 0")
        images = self.images.dtype == np.uint8 and self.images.ndim == 5 and self.images.shape[-1] == 3
        _expect(self.images, "images", images and len(self.images) == n, f"({n}, cameras, h, w, 3) uint8")
        _expect(self.state, "state", self.state.ndim == 2 and len(self.state) == n, f"({n}, joints)")
        joints = self.state.shape[1]
        noise = self.noise.ndim == 3 and len(self.noise) == n and self.noise.shape[2] >= joints
        _expect(self.noise, "noise", noise, f"({n}, horizon, width), at least {joints} wide")
        for name in ("state", "noise"):
            array: np.ndarray = getattr(self, name)
            _expect(array, name, array.dtype == np.float32 and bool(np.isfinite(array).all()), "finite float32")

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def is_blank(self) -> bool:
        """Made by `blank`: no robot ever saw this, so no policy was trained on it."""
        return bool((self.tasks == IDLE).all() and (self.images == GREY).all())

    def same(self, other: Golden) -> bool:
        return self is other or all(np.array_equal(getattr(self, name), getattr(other, name)) for name in ARRAYS)

    def observations(self, spec: RobotSpec) -> list[Observation]:
        """The n observations, as a robot of this spec would show them. Raises BundleError when they do not fit."""
        if self.images.shape[1:] != (expected := _room(spec)):
            raise BundleError(f"{FILE}: images: the spec's cameras give {expected}, got {self.images.shape[1:]}")
        if self.state.shape[1] != len(spec.joints):
            raise BundleError(f"{FILE}: state: the spec has {len(spec.joints)} joints, got {self.state.shape[1]}")
        return [
            Observation(
                {
                    camera.name: image[: camera.height, : camera.width]
                    for camera, image in zip(spec.cameras, images, strict=True)
                },
                state,
                str(task),
            )
            for images, state, task in zip(self.images, self.state, self.tasks, strict=True)
        ]

    @classmethod
    def of(cls, observations: Sequence[Observation], spec: RobotSpec, noise: np.ndarray) -> Golden:
        """Observations of a robot of this spec; noise (n, horizon, width)."""
        images = np.zeros((len(observations), *_room(spec)), np.uint8)
        for row, seen in zip(images, observations, strict=True):
            for place, camera in zip(row, spec.cameras, strict=True):
                place[: camera.height, : camera.width] = seen.images[camera.name]
        state = np.stack([seen.state for seen in observations])
        return cls(images, state, np.array([seen.task for seen in observations]), noise)

    def to_bytes(self) -> bytes:
        """The content of `golden.npz`; the same observations give the same bytes."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, images=self.images, state=self.state, tasks=self.tasks, noise=self.noise)
        return buffer.getvalue()

    @classmethod
    def load(cls, path: Path) -> Golden:
        """Read `golden.npz`. Raises BundleError when it is damaged."""
        arrays = read_npz(path, ARRAYS, "golden observations")
        try:
            return cls(**arrays)
        except BundleError as error:
            raise BundleError(f"{path}: {error}") from error

    @classmethod
    def of_chain(cls, chain: Sequence[Bundle]) -> Golden | None:
        """The golden observations of the version at the end of a chain: its own, or the nearest it inherits."""
        for bundle in reversed(chain):
            if FILE in bundle.manifest.files:
                return _kept(bundle.file(FILE), bundle.manifest.files[FILE])
        return None

    @classmethod
    def blank(cls, spec: RobotSpec, horizon: int, n: int = 1, width: int | None = None) -> Golden:
        """Grey images, joints in mid-range, an idle instruction: for warming up, and for a version without its own.
        `width` is the model's, where it has more than the robot's joints."""
        middle = np.array([(joint.low + joint.high) / 2 for joint in spec.joints], np.float32)
        noise = np.random.default_rng(0).standard_normal((n, horizon, width or len(spec.joints)), np.float32)
        images = np.full((n, *_room(spec)), GREY, np.uint8)
        return cls(images, np.tile(middle, (n, 1)), np.array([IDLE] * n), noise)


@lru_cache(maxsize=2)
def _kept(path: Path, sha256: str) -> Golden:
    """A file that was verified: candidates on one parent are asked the same again and again."""
    return Golden.load(path)


def _room(spec: RobotSpec) -> tuple[int, int, int, int]:
    """(cameras, height, width, 3): what holds every camera's picture."""
    height = max((camera.height for camera in spec.cameras), default=1)
    return len(spec.cameras), height, max((camera.width for camera in spec.cameras), default=1), 3


def _expect(array: np.ndarray, name: str, right: bool, expected: str) -> None:
    if not right:
        raise BundleError(f"{name}: expected {expected}, got {array.dtype} {array.shape}")
