"""What an operator may be able to do beside acting (`robot.Operator`), each asked for by itself."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import numpy as np

Decision = Literal["done", "again", "stop"]  # keep the episode; discard it and try again; discard it and end


@runtime_checkable
class Deciding(Protocol):
    """An operator who says what becomes of an episode; for others an episode that is over is done."""

    decision: Decision


@runtime_checkable
class Controlling(Protocol):
    """An operator who can take over from a policy and hand back."""

    in_control: bool


@runtime_checkable
class Pausing(Protocol):
    """An operator who can halt everything for a while."""

    paused: bool


@runtime_checkable
class Following(Protocol):
    """An operator whose device goes along while somebody else drives."""

    def follow(self, state: np.ndarray) -> None: ...  # (joints,) where the arm is


@runtime_checkable
class Beginning(Protocol):
    """An operator who must know that an episode begins, so that nothing of the last one moves the arm in this one."""

    def begin(self, task: str) -> None: ...
