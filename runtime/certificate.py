"""Proof that an export computes what torch computes: the same frames and noise through both, the distance measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from hotpolicy.runtime import rtc
from hotpolicy.runtime.engine import Batch, Engine, Guidance
from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.golden import Golden
from hotpolicy.runtime.messages import RobotSpec
from hotpolicy.runtime.transforms import Transforms

TOLERANCE = 1e-4  # normalised action units
MADE_UP = 6  # frames of noise, beside the golden ones: they reach what recorded frames do not, e.g. absent cameras


@dataclass(frozen=True, slots=True)
class JointError:
    """Distance of one joint's actions, over all frames and steps of the chunk."""

    name: str
    unit: str  # of the two numbers
    max: float
    mean: float


@dataclass(frozen=True, slots=True)
class Certificate:
    golden: int  # frames from the bundle's golden file
    made_up: int  # frames of noise
    max_abs_error: float  # normalised action units
    mean_abs_error: float
    tolerance: float
    joints: tuple[JointError, ...]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "joints": [asdict(joint) for joint in self.joints]}


def certify(
    reference: Engine,
    engine: Engine,
    spec: RobotSpec,
    transforms: Transforms,
    batches: Sequence[Batch],
    golden: int = 0,
    tolerance: float = TOLERANCE,
) -> Certificate:
    """Raises BundleError when the engine is further from the reference than `tolerance`, or not finite."""
    pairs = [(reference.infer(batch), engine.infer(batch)) for batch in batches]
    wanted, got = (np.concatenate(side).astype(np.float64) for side in zip(*pairs, strict=True))
    error = np.abs(wanted - got)  # (frames, horizon, width)
    if not np.isfinite(got).all():
        raise BundleError("certificate: ONNX Runtime answered NaN or infinity")
    if error.max() > tolerance:
        raise BundleError(
            f"certificate: ONNX Runtime differs from torch by {error.max():.3g}, expected at most {tolerance:g} "
            "normalised action units"
        )
    physical = error[..., : transforms.joints] * transforms.action.scale  # the state that is added to both cancels
    joints = tuple(
        JointError(joint.name, joint.unit, float(physical[:, :, j].max()), float(physical[:, :, j].mean()))
        for j, joint in enumerate(spec.joints)
    )
    return Certificate(golden, len(error) - golden, float(error.max()), float(error.mean()), tolerance, joints)


def golden_batch(golden: Golden, spec: RobotSpec, transforms: Transforms) -> Batch:
    return transforms.encode(golden.observations(spec), golden.noise)


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
