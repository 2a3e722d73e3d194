"""What a camera saw during an episode, kept for the report's film strips."""

from __future__ import annotations

import numpy as np

from hotpolicy.runtime.messages import Step


class Film:
    """A subscriber of the control loop that keeps the frames of the last episode."""

    def __init__(self) -> None:
        self.frames: list[np.ndarray] = []  # (height, width, 3) uint8 each

    def begin(self, task: str) -> None:
        self.frames = []

    def step(self, step: Step) -> None:
        self.frames.append(next(iter(step.observation.images.values())))

    def save(self, success: bool | None = None) -> None:
        pass

    def discard(self) -> None:
        pass
