"""All steps between an observation and a batch, in order, and back from a model's actions to a robot's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.engine import Batch
from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.messages import Observation, RobotSpec
from hotpolicy.runtime.tokenizer import Inherited, SideFiles, Tokenizer, tokenizer_from_dict
from hotpolicy.runtime.transforms.images import ImageSlots
from hotpolicy.runtime.transforms.normalise import Normaliser, normaliser_from_dict
from hotpolicy.runtime.transforms.prompt import Prompt
from hotpolicy.runtime.transforms.relative import Relative
from hotpolicy.runtime.transforms.width import Width

FIELDS = ("cameras", "normalisation", "state", "action", "relative", "tokenizer")
OPTIONAL = ("images", "eps", "width", "horizon", "prompt")
EACH_CAMERA, WORDS = ImageSlots(()), Prompt("words")  # what an entry says that leaves them out


@dataclass(frozen=True, slots=True)
class Transforms:
    """Raises BundleError when the parts are not of one robot."""

    cameras: tuple[str, ...]  # that are looked at, in the order of their slots
    state: Normaliser  # (joints,)
    action: Normaliser  # (joints,), or (horizon, joints) where each step of the chunk has its own scale
    relative: Relative
    tokenizer: Tokenizer
    images: ImageSlots = EACH_CAMERA  # left out: a slot for each camera, of its own size
    prompt: Prompt = WORDS
    width: int = 0  # of the model's state and actions; left out: the robot's joints
    horizon: int = 0  # actions per chunk; may be left out where `action` says it

    def __post_init__(self) -> None:
        if not self.images.slots:
            object.__setattr__(self, "images", ImageSlots(self.cameras))
        if not self.width:
            object.__setattr__(self, "width", self.joints)
        if not self.horizon and len(self.action.shape) == 2:
            object.__setattr__(self, "horizon", self.action.shape[0])
        joints = self.joints
        for name, got, expected in (
            ("state", self.state.shape, (joints,)),
            ("relative", self.relative.mask.shape, (joints,)),
            ("action", self.action.shape[:-1], (self.horizon,) if len(self.action.shape) == 2 else ()),
            ("images.slots", self.images.cameras, self.cameras),
            ("eps", self.state.eps, self.action.eps),
            ("normalisation", type(self.state), type(self.action)),
        ):
            if got != expected:
                raise BundleError(f"transforms.{name}: expected {expected}, got {got}")
        if self.width < joints:
            raise BundleError(f"transforms.width: expected at least {joints}, the joints, got {self.width}")
        if self.horizon < 1:
            raise BundleError("transforms.horizon: expected the actions of a chunk, got none")

    @property
    def joints(self) -> int:
        return self.action.shape[-1]

    @property
    def slots(self) -> int:
        """Images a model is given, those without a camera among them."""
        return len(self.images.slots)

    def check_fits(self, spec: RobotSpec, config: Mapping[str, Any]) -> None:
        """Raises BundleError where these are not for this robot, or not for a model of this config."""
        cameras = {camera.name: (camera.height, camera.width) for camera in spec.cameras}
        size = config.get("vision", {}).get("image_size")
        for name in self.cameras:
            if name not in cameras:
                raise BundleError(f"transforms.cameras: {name}: the spec has {', '.join(cameras) or 'no camera'}")
            if size is not None and self.images.resize == "none" and cameras[name] != (size, size):
                raise BundleError(
                    f"transforms.images: expected resize 'pad', because {name} gives {cameras[name]} and the model "
                    f"takes {(size, size)}"
                )
        for field, got, expected in (
            ("action", self.joints, len(spec.joints)),
            ("width", self.width, config.get("action_dim")),
            ("horizon", self.horizon, config.get("horizon")),
            ("images.size", self.images.size or size, size),
        ):
            if expected is not None and got != expected:
                raise BundleError(f"transforms.{field}: expected {expected}, got {got}")
        if self.tokenizer.vocabulary > config.get("vocabulary", self.tokenizer.vocabulary):
            raise BundleError(
                f"tokenizer: knows {self.tokenizer.vocabulary} tokens, the model {config['vocabulary']}: "
                "it is not this model's"
            )

    def noise(self, rng: np.random.Generator, batch: int) -> np.ndarray:
        """Where the flow of `batch` chunks starts: (batch, horizon, width) float32."""
        return rng.standard_normal((batch, self.horizon, self.width), np.float32)

    def encode(self, observations: Sequence[Observation], noise: np.ndarray) -> Batch:
        """Observations that passed `Policy.check` -> a batch; noise (batch, horizon, width)."""
        state = np.stack([seen.state for seen in observations])
        tokens, token_mask = self.encode_tasks([seen.task for seen in observations], state)
        images, image_mask = self.images.forward([seen.images for seen in observations])
        return Batch(images, image_mask, tokens, token_mask, self.encode_state(state), noise.astype(np.float32))

    def encode_state(self, state: np.ndarray) -> np.ndarray:
        """(batch, joints) in the robot's units -> (batch, width) normalised."""
        return self._pad.forward(self.state.forward(state))

    def encode_tasks(self, tasks: Sequence[str], state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Instructions, and state (batch, joints) in the robot's units -> token ids (batch, length) int64 and their
        mask. Raises BadRequest for an instruction that is empty or longer than the model's token budget."""
        known: dict[tuple[str, bytes], tuple[np.ndarray, np.ndarray]] = {}
        shown = self.encode_state(state) if self.prompt.reads_padding else self.state.forward(state)
        read = [row.tobytes() if self.prompt.reads_state else b"" for row in shown]
        keys = list(zip(tasks, read, strict=True))
        for key, row in zip(keys, shown, strict=True):
            if key not in known:
                known[key] = self.tokenizer.encode(*self.prompt.pieces(key[0], row))
        ids, masks = zip(*(known[key] for key in keys), strict=True)
        return np.stack(ids), np.stack(masks)

    def decode(self, actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        """A model's (batch, horizon, width) -> absolute targets (batch, horizon, joints) in the robot's units;
        state (batch, joints) raw."""
        return self.relative.inverse(self.action.inverse(self._pad.inverse(actions)), state).astype(np.float32)

    def encode_actions(self, actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        """The inverse of `decode`: what a model should have said. The padding is zeros to it, and counts in the flow
        loss like any joint, as in openpi; LeRobot leaves it out of the loss."""
        return self._pad.forward(self.action.forward(self.relative.forward(actions, state)))

    @property
    def _pad(self) -> Width:
        return Width(self.joints, self.width)

    def to_dict(self) -> dict[str, Any]:
        """The manifest's entry. What is as it would be if it were left out is left out."""
        more: dict[str, Any] = {
            "images": self.images.to_dict() if self.images.size is not None else None,
            "eps": self.action.eps or None,
            "width": self.width if self.width != self.joints else None,
            "horizon": self.horizon if len(self.action.shape) == 1 else None,
            "prompt": self.prompt.format if self.prompt != WORDS else None,
        }
        return {
            "cameras": list(self.cameras),
            "normalisation": self.state.kind,
            "state": self.state.to_dict(),
            "action": self.action.to_dict(),
            "relative": self.relative.mask.tolist(),
            "tokenizer": self.tokenizer.to_dict(),
            **{name: value for name, value in more.items() if value is not None},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], files: SideFiles | None = None) -> Transforms:
        """`files` has the side files the entry names, e.g. the bundle it stands in. Raises BundleError naming the field
        that is missing, unknown or unusable."""
        for name in FIELDS:
            if name not in data:
                raise BundleError(f"transforms: expected a field {name!r}")
        if unknown := sorted(set(data) - {*FIELDS, *OPTIONAL}):
            raise BundleError(f"transforms.{unknown[0]}: unknown field")
        eps = data.get("eps", 0.0)
        if type(eps) not in (int, float) or not 0 <= eps < 1:
            raise BundleError(f"transforms.eps: expected 0 or a little more, got {eps!r}")
        for name in ("width", "horizon"):
            if name in data and (type(data[name]) is not int or data[name] < 1):
                raise BundleError(f"transforms.{name}: expected at least 1, got {data[name]!r}")
        return cls(
            cameras=_list_of(str, data, "cameras"),
            state=normaliser_from_dict(data["normalisation"], data["state"], "state", eps),
            action=normaliser_from_dict(data["normalisation"], data["action"], "action", eps),
            relative=Relative(np.array(_list_of(bool, data, "relative"), bool)),
            tokenizer=tokenizer_from_dict(data["tokenizer"], files),
            images=ImageSlots.from_dict(data["images"]) if "images" in data else EACH_CAMERA,
            prompt=Prompt(data.get("prompt", "words")),
            width=data.get("width", 0),
            horizon=data.get("horizon", 0),
        )

    @classmethod
    def of_chain(cls, chain: Sequence[Bundle]) -> Transforms:
        """Those of the version at the end of a chain; a delta inherits its parents' side files. Raises BundleError."""
        return cls.from_dict(chain[-1].manifest.transforms, Inherited.of_chain(chain))


def _list_of(kind: type, data: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    values = data[name]
    if not isinstance(values, list | tuple) or not all(type(value) is kind for value in values):
        raise BundleError(f"transforms.{name}: expected a list of {kind.__name__}, got {values!r:.80}")
    return tuple(values)
