"""Whose names are whose: another runtime's observation and action keys, as data, and our robot's cameras and joints.

A map is a JSON file (see keymap_file.py), or is derived from the robot itself. `fit` holds it against the live policy's
robot once; what is left to do for each observation is to look up, reorder and check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hotpolicy.runtime.envelope import TASK_LENGTH
from hotpolicy.runtime.errors import BadRequest, ConfigError, HotpolicyError
from hotpolicy.runtime.messages import Observation, RobotSpec

Parts = Mapping[str, Sequence[str]]  # their key -> our joints, in the order of its numbers


@dataclass(frozen=True, slots=True)
class KeyMap:
    """Raises ConfigError naming the key when a value is not what it must be."""

    name: str
    front: str  # whose keys: "gr00t" or "openpi"
    images: Mapping[str, str]  # their key -> our camera
    state: Parts
    actions: Parts  # how a chunk is split for the reply; joints left out are not sent
    task: tuple[str, ...]  # keys of the instruction, the first that is there is taken
    default_task: str | None = None  # for clients that send none
    note: str = field(default="", compare=False)

    def fit(self, spec: RobotSpec) -> Fit:
        """The map on this robot. Raises ConfigError naming the key that does not fit."""
        cameras, joints = [camera.name for camera in spec.cameras], [joint.name for joint in spec.joints]
        for key, camera in self.images.items():
            self._require(camera in cameras, f"images.{key}", f"a camera among {_list(cameras)}, got {camera!r}")
        if missing := [camera for camera in cameras if camera not in self.images.values()]:
            raise self._wrong("images", f"a key for the camera {missing[0]!r}")
        for kind, parts in (("state", self.state), ("actions", self.actions)):
            named: set[str] = set()
            for key, names in parts.items():
                for name in names:
                    self._require(name in joints, f"{kind}.{key}", f"joints among {_list(joints)}, got {name!r}")
                    self._require(name not in named, f"{kind}.{key}", f"each joint once, got {name!r} again")
                    named.add(name)
        sent = [name for names in self.state.values() for name in names]
        if missing := [name for name in joints if name not in sent]:
            raise self._wrong("state", f"a key for the joint {missing[0]!r}")
        return Fit(
            keymap=self,
            widths={key: len(names) for key, names in self.state.items()},
            order=np.array([sent.index(name) for name in joints]),
            columns={key: np.array([joints.index(name) for name in names]) for key, names in self.actions.items()},
        )

    def _require(self, right: bool, key: str, expected: str) -> None:
        if not right:
            raise self._wrong(key, expected)

    def _wrong(self, key: str, expected: str) -> ConfigError:
        return ConfigError(f"keymap {self.name}: {key}: expected {expected}")


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A map that fits a robot."""

    keymap: KeyMap
    widths: Mapping[str, int]  # numbers in each part of the state
    order: np.ndarray  # (joints,): where each of our joints stands among the parts, one behind another
    columns: Mapping[str, np.ndarray]  # which of our joints make each part of an action

    def observation(self, values: Mapping[str, Any]) -> Observation:
        """What a client sent, keys flattened, as ours; other keys than the map's are left alone, as their servers do.
        Raises BadRequest naming the client's key."""
        images = {camera: picture(key, _there(values, key)) for key, camera in self.keymap.images.items()}
        parts = [numbers(key, _there(values, key), width) for key, width in self.widths.items()]
        return Observation(images=images, state=np.concatenate(parts)[self.order], task=self._task(values))

    def split(self, actions: np.ndarray) -> dict[str, np.ndarray]:
        """(horizon, joints) -> their parts, each (horizon, width)."""
        return {key: actions[:, columns] for key, columns in self.columns.items()}

    def in_their_words(self, error: HotpolicyError) -> HotpolicyError:
        """A refusal of one of our cameras, naming the client's key instead."""
        for key, camera in self.keymap.images.items():
            if str(error).startswith(f"images.{camera}: "):
                return type(error)(f"{key}: {str(error).partition(': ')[2]}")
        return error

    def _task(self, values: Mapping[str, Any]) -> str:
        keys = self.keymap.task
        found = next((values[key] for key in keys if key in values), self.keymap.default_task)
        if type(found) is not str or len(found) > TASK_LENGTH:
            got = "nothing" if found is None else type(found).__name__
            raise BadRequest(f"{keys[0]}: expected an instruction of at most {TASK_LENGTH} characters, got {got}")
        return found


class Fitting:
    """A map held against whatever robot the live policy is for: a swap may bring another. Used from any thread."""

    def __init__(self, keymap: KeyMap | None, default: Callable[[RobotSpec], KeyMap]):
        self._keymap, self._default = keymap, default
        self._last: tuple[RobotSpec, Fit] | None = None

    def fit(self, spec: RobotSpec) -> Fit:
        """Raises ConfigError naming the key that does not fit."""
        last = self._last
        if last is None or (last[0] is not spec and last[0] != spec):
            last = self._last = (spec, (self._keymap or self._default(spec)).fit(spec))
        return last[1]


def picture(key: str, value: Any) -> np.ndarray:
    """(height, width, 3) uint8 RGB, from that, from colours first, or from floats of 0 to 1, as openpi takes them."""
    if not isinstance(value, np.ndarray) or value.ndim != 3 or not (value.dtype == np.uint8 or value.dtype.kind == "f"):
        got = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise BadRequest(f"{key}: expected a picture (height, width, 3) uint8, got {got}")
    if value.shape[0] == 3 and value.shape[2] != 3:
        value = value.transpose(1, 2, 0)
    if value.dtype.kind == "f":
        if not value.size or not np.isfinite(value).all() or value.min() < 0 or value.max() > 1:
            raise BadRequest(f"{key}: expected a picture of floats from 0 to 1")
        value = (255 * value).astype(np.uint8)
    return np.ascontiguousarray(value)


def numbers(key: str, value: Any, width: int) -> np.ndarray:
    """(width,) float32, from any numbers of that many, whatever their shape."""
    try:
        with np.errstate(over="ignore"):
            found = np.asarray(value, np.float32).ravel()
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRequest(f"{key}: expected {width} numbers, got {type(value).__name__}") from error
    if found.shape != (width,):
        raise BadRequest(f"{key}: expected {width} numbers, got {found.size}")
    if not np.isfinite(found).all():
        raise BadRequest(f"{key}: expected finite numbers")
    return found


def _there(values: Mapping[str, Any], key: str) -> Any:
    if key not in values:
        raise BadRequest(
            f"{key}: expected this key, got {_list(sorted(ascii(k)[1:-1] for k in values)[:12]) or 'none'}"
        )
    return values[key]


def gr00t_default(spec: RobotSpec) -> KeyMap:
    """video.CAMERA, and all joints as state.joints and action.joints."""
    joints = tuple(joint.name for joint in spec.joints)
    return KeyMap(
        name="of the robot itself",
        front="gr00t",
        images={f"video.{camera.name}": camera.name for camera in spec.cameras},
        state={"state.joints": joints},
        actions={"action.joints": joints},
        task=(
            "annotation.human.action.task_description",
            "annotation.human.task_description",
            "annotation.human.coarse_action",
            "task",
        ),
    )


def openpi_default(spec: RobotSpec) -> KeyMap:
    """observation/CAMERA, observation/state and prompt; all joints as actions."""
    joints = tuple(joint.name for joint in spec.joints)
    return KeyMap(
        name="of the robot itself",
        front="openpi",
        images={f"observation/{camera.name}": camera.name for camera in spec.cameras},
        state={"observation/state": joints},
        actions={"actions": joints},
        task=("prompt",),
    )


def _list(words: Iterable[str]) -> str:
    return ", ".join(words)
