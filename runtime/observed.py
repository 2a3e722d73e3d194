"""Is what a robot sent what its policy expects? Every refusal names the field, what was expected and what came."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hotpolicy.runtime.errors import BadRequest
from hotpolicy.runtime.messages import Observation, RobotSpec


def check_observation(observation: Observation, spec: RobotSpec, model_size: int | None = None) -> None:
    """Images and state against the spec; an instruction is for the tokenizer to judge. `model_size`: a picture may
    also come as the model gets it, fitted by the robot into a square of so many pixels. Raises BadRequest."""
    check_state(observation.state, len(spec.joints))
    for camera in spec.cameras:
        if camera.name not in observation.images:
            got = ", ".join(sorted(observation.images)) or "none"
            raise BadRequest(f"images.{camera.name}: expected this camera, got {got}")
        sizes = [(camera.height, camera.width)] + ([(model_size, model_size)] if model_size else [])
        check_image(observation.images[camera.name], f"images.{camera.name}", sizes)
    if unknown := sorted(set(observation.images) - {camera.name for camera in spec.cameras}):
        known = ", ".join(camera.name for camera in spec.cameras) or "none"
        raise BadRequest(f"images.{unknown[0]}: this policy knows no such camera; expected {known}")


def check_state(state: np.ndarray, joints: int) -> None:
    if state.shape != (joints,) or state.dtype != np.float32:
        raise BadRequest(f"state: expected ({joints},) float32, got {state.shape} {state.dtype}")
    if not np.isfinite(state).all():
        joint = int(np.argmin(np.isfinite(state)))
        raise BadRequest(f"state: expected finite numbers, got {state[joint]} at joint {joint}")


def check_image(image: np.ndarray, field: str, sizes: Sequence[tuple[int, int]]) -> None:
    """`sizes` are the (height, width) it may have. Raises BadRequest, with a guess at what went wrong."""
    expected = " or ".join(f"({height}, {width}, 3)" for height, width in sizes)
    if image.shape in {(height, width, 3) for height, width in sizes} and image.dtype == np.uint8:
        return
    raise BadRequest(f"{field}: expected {expected} uint8 RGB, got {image.shape} {image.dtype}{_guess(image, sizes)}")


def _guess(image: np.ndarray, sizes: Sequence[tuple[int, int]]) -> str:
    shape = image.shape
    if len(shape) == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        return ": the colours come first; expected height, width, colours"
    if len(shape) == 4:
        return ": a batch; expected one picture"
    if len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 4)):
        return ": expected three colours"
    if len(shape) == 3 and (shape[1], shape[0]) in sizes and shape[:2] not in sizes:
        return ": height and width are exchanged"
    if image.dtype.kind == "f":
        if not image.size or not np.isfinite(image).all():
            return ": NaN or infinity among them"
        low, high = float(image.min()), float(image.max())
        return f": numbers from {low:.3g} to {high:.3g}; expected 0 to 255, not scaled"
    return ""
