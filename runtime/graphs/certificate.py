"""Proof that an export computes what torch computes: the same frames and noise through both, the distance measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from hotpolicy.runtime import rtc
from hotpolicy.runtime.engine import Batch, Engine, Guidance
from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.messages import Observation, RobotSpec
from hotpolicy.runtime.transforms import Transforms
from hotpolicy.runtime.versions.golden import Golden

MADE_UP = 6  # frames of noise, beside the golden ones: they reach what recorded frames do not, e.g. absent cameras
TOGETHER = 4  # frames in one batch: what they take in memory does not grow with how many there are


@dataclass(frozen=True, slots=True)
class JointError:
    """Distance of one joint's actions, over all frames and steps of the chunk."""

    name: str
    unit: str  # of the two numbers
    max: float
    mean: float


@dataclass(frozen=True, slots=True)
class Certificate:
    """How far the actions of ONNX Runtime are from torch's, which computes in fp32."""

    golden: int  # frames from the bundle's golden file
    recorded: int  # frames of a dataset
    made_up: int  # frames of noise
    precision: str
    bound: float  # normalised action units
    max_abs_error: float  # normalised action units
    mean_abs_error: float
    joints: tuple[JointError, ...]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "joints": [asdict(joint) for joint in self.joints]}

    @property
    def holds(self) -> bool:
        return self.max_abs_error <= self.bound


@dataclass(frozen=True)
class Frames:
    """What both sides are asked, one frame after the other: golden, then recorded, then made up."""

    batches: tuple[Batch, ...]
    golden: int
    recorded: int
    made_up: int

    @classmethod
    def of(
        cls, transforms: Transforms, made_up: Batch, spec: RobotSpec, golden: Golden | None,
        recorded: Sequence[Observation] = (),
    ) -> Frames:  # fmt: skip
        batches = [golden_batch(golden, spec, transforms)] if golden else []
        if recorded:
            batches.append(transforms.encode(recorded, transforms.noise(np.random.default_rng(1), len(recorded))))
        parts = tuple(part for batch in (*batches, made_up) for part in split(batch, TOGETHER))
        return cls(parts, len(golden or ()), len(recorded), len(made_up.state))

    @property
    def seen(self) -> tuple[Batch, ...]:
        """Those a robot saw; where there are none, all."""
        count, found = 0, []
        for batch in self.batches:
            if count >= self.golden + self.recorded:
                break
            found.append(batch)
            count += len(batch.state)
        return tuple(found) or self.batches

    def answers(self, engine: Engine) -> np.ndarray:
        """(frames, horizon, width) float64, normalised."""
        return np.concatenate([engine.infer(batch) for batch in self.batches]).astype(np.float64)


def certify(
    wanted: np.ndarray, engine: Engine, frames: Frames, spec: RobotSpec, transforms: Transforms, precision: str,
    bound: float,
) -> Certificate:  # fmt: skip
    """`wanted` are torch's answers to `frames`. What is measured may be beyond the bound: see `check`."""
    error = np.abs(wanted - frames.answers(engine))  # (frames, horizon, width); NaN where it is not a number
    physical = error[..., : transforms.joints] * transforms.action.scale  # the state that is added to both cancels
    joints = tuple(
        JointError(joint.name, joint.unit, float(physical[:, :, j].max()), float(physical[:, :, j].mean()))
        for j, joint in enumerate(spec.joints)
    )
    return Certificate(
        frames.golden,
        frames.recorded,
        frames.made_up,
        precision,
        bound,
        float(error.max()),
        float(error.mean()),
        joints,
    )


def check(certificate: Certificate) -> None:
    """Raises BundleError when the engine is further from torch than the bound, or not finite."""
    if not np.isfinite(certificate.max_abs_error):
        raise BundleError("certificate: ONNX Runtime answered NaN or infinity")
    if not certificate.holds:
        worst = max(certificate.joints, key=lambda joint: joint.max)
        raise BundleError(
            f"certificate: ONNX Runtime in {certificate.precision} differs from torch by "
            f"{certificate.max_abs_error:.3g}, expected at most {certificate.bound:g} normalised action units; "
            f"most in {worst.name}: {worst.max:.3g} {worst.unit}"
        )


def golden_batch(golden: Golden, spec: RobotSpec, transforms: Transforms) -> Batch:
    return transforms.encode(golden.observations(spec), golden.noise)


def split(batch: Batch, size: int) -> Iterator[Batch]:
    """The same rows, at most `size` at a time."""
    for start in range(0, len(batch.state), size):
        yield rows(batch, slice(start, start + size))


def rows(batch: Batch, chosen: slice) -> Batch:
    arrays = {field.name: getattr(batch, field.name)[chosen] for field in fields(batch) if field.name != "guidance"}
    promised = batch.guidance and Guidance(**{name: array[chosen] for name, array in batch.guidance.arrays().items()})
    return Batch(**arrays, guidance=promised)


def made_up_batch(transforms: Transforms, image_size: int, vocabulary: int, frames: int = MADE_UP) -> Batch:
    """Noise in every field; instructions of every length, (where there are several) cameras that are absent, and every
    other row guided."""
    rng = np.random.default_rng(0)
    cameras, words = transforms.slots, transforms.tokenizer.max_tokens
    image_mask = np.ones((frames, cameras), bool)
    if cameras > 1:
        image_mask[np.arange(1, frames), np.arange(1, frames) % cameras] = False
    image_mask[:, [slot is None for slot in transforms.images.slots]] = False
    lengths = 1 + np.arange(frames) * (words - 1) // max(frames - 1, 1)
    made = Batch(
        images=rng.integers(0, 256, (frames, cameras, image_size, image_size, 3), np.uint8),
        image_mask=image_mask,
        tokens=rng.integers(0, vocabulary, (frames, words), np.int64),
        token_mask=np.arange(words) < lengths[:, None],
        state=rng.standard_normal((frames, transforms.width), np.float32),
        noise=transforms.noise(rng, frames),
    )
    horizon, guidance = transforms.horizon, Guidance.none(*made.noise.shape)
    guidance.previous[1::2] = rng.standard_normal(guidance.previous[1::2].shape)
    for row in range(1, frames, 2):
        guidance.weight[row] = rtc.weights(rtc.SCHEDULES[row // 2 % len(rtc.SCHEDULES)], row, horizon - 1, horizon)
        guidance.limit[row] = row  # below and above what a step asks for
    return replace(made, guidance=guidance)
