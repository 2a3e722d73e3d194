"""From an instruction, and for pi0.5 the robot's state, to the text a tokenizer is given.

A format is the pieces of text that are encoded one by one, the first behind the beginning-of-sequence token:

    words         the instruction, as it is
    pi0           openpi: the instruction cleaned; then, apart, the newline at which the answer starts
    pi0_lerobot   LeRobot: the instruction as it is, and a newline unless it ends in one, in one piece
    pi05          both: "Task: ..., State: ...;\\nAction: ", the state as 256 bins over [-1, 1] per joint
    pi05_padded   older LeRobot: as pi05, with the zeros that pad the state among the bins

pi05_libero of openpi is a pi0.5 that was trained on pi0's prompt: its format is pi0, and it does not see its state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from hotpolicy.runtime.errors import BadRequest, BundleError

BINS = np.linspace(-1, 1, 257)[:-1]  # lower edges


def _clean(task: str) -> str:
    return task.strip().replace("_", " ").replace("\n", " ")


def _words(task: str, state: np.ndarray) -> tuple[str, ...]:
    return (task,)


def _pi0(task: str, state: np.ndarray) -> tuple[str, ...]:
    return _clean(task), "\n"


def _pi0_lerobot(task: str, state: np.ndarray) -> tuple[str, ...]:
    return (task if task.endswith("\n") else f"{task}\n",)


def _pi05(task: str, state: np.ndarray) -> tuple[str, ...]:
    return (f"Task: {_clean(task)}, State: {' '.join(map(str, state_bins(state)))};\nAction: ",)


FORMATS: Mapping[str, Callable[[str, np.ndarray], tuple[str, ...]]] = {
    "words": _words,
    "pi0": _pi0,
    "pi0_lerobot": _pi0_lerobot,
    "pi05": _pi05,
    "pi05_padded": _pi05,
}


@dataclass(frozen=True, slots=True)
class Prompt:
    format: str = "words"

    def __post_init__(self) -> None:
        """Raises BundleError for a format this version does not know."""
        if not isinstance(self.format, str) or self.format not in FORMATS:
            raise BundleError(f"transforms.prompt: expected one of {', '.join(FORMATS)}, got {self.format!r}")

    @property
    def reads_state(self) -> bool:
        return self.format in ("pi05", "pi05_padded")

    @property
    def reads_padding(self) -> bool:
        return self.format == "pi05_padded"

    def pieces(self, task: str, state: np.ndarray) -> tuple[str, ...]:
        """state (joints,) or, where the format reads padding, (width,): normalised. Raises BadRequest for an
        instruction without a word."""
        if not task.strip():
            raise BadRequest("task: expected an instruction of at least one word, got none")
        return FORMATS[self.format](task, state)


def state_bins(state: np.ndarray) -> list[int]:
    """Normalised (joints,) -> 0 to 255 over [-1, 1]; what is above is 255 and what is below is -1, as trained."""
    return [int(bin_) for bin_ in np.digitize(state, BINS) - 1]
