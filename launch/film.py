"""What a camera saw during an episode: kept for a film strip, or shown in the terminal as it happens."""

from __future__ import annotations

import numpy as np
from rich.live import Live
from rich.text import Text

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


class TerminalViewer:
    """A subscriber that paints the first camera into the terminal, two pixels a character. Feed it with "drop"."""

    def __init__(self, live: Live):
        self.live = live

    def begin(self, task: str) -> None:
        pass

    def step(self, step: Step) -> None:
        self.live.update(paint(next(iter(step.observation.images.values())), step.observation.task))

    def save(self, success: bool | None = None) -> None:
        pass

    def discard(self) -> None:
        pass


def paint(image: np.ndarray, caption: str = "", columns: int = 64) -> Text:
    """(height, width, 3) uint8 -> half blocks: the upper pixel is the ink, the lower one the paper."""
    every = max(1, image.shape[1] // columns)
    small = image[::every, ::every]
    text = Text(f"{caption}\n")
    for upper, lower in zip(small[0::2], small[1::2], strict=False):
        for a, b in zip(upper, lower, strict=True):
            text.append("▀", style=f"rgb({a[0]},{a[1]},{a[2]}) on rgb({b[0]},{b[1]},{b[2]})")
        text.append("\n")
    return text
