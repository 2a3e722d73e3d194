"""When a script takes over from a policy and when it hands back: by the way left to where it would go itself."""

from __future__ import annotations

import numpy as np

# In ticks at full speed, of the joint that has furthest to go.
ASTRAY = 0.75  # so much further away than it was
NEARER = 0.25  # less is no progress
ARRIVED = 0.5
PATIENCE = 6  # ticks without progress, before there is need for help
STAY = 3  # ticks at the goal before it hands back


class Course:
    """Of one episode. `in_control`: the script acts, because the policy went the wrong way or did not get on."""

    def __init__(self, step: np.ndarray):
        """`step`: (joints,) the furthest a joint moves in a tick."""
        self.in_control = False
        self._step = step
        self._aim: np.ndarray | None = None
        self._nearest, self._waited, self._stayed = 0.0, 0, 0

    def watch(self, state: np.ndarray, aim: np.ndarray) -> None:
        """A tick: (joints,) where the arm is, and where the script would have it."""
        left = float(np.abs((aim - state) / self._step).max())
        if self._aim is None or np.abs((aim - self._aim) / self._step).max() > ASTRAY:  # it has another goal now
            self._nearest, self._waited, self._stayed = left, 0, 0
        elif left < self._nearest - NEARER:
            self._nearest, self._waited = left, 0
        else:
            self._waited += 1
        self._aim = aim
        if self.in_control:
            self._stayed = self._stayed + 1 if left < ARRIVED else 0
            if self._stayed > STAY:
                self.in_control, self._nearest, self._waited = False, left, 0
        elif left > self._nearest + ASTRAY or (left > ARRIVED and self._waited >= PATIENCE):
            self.in_control, self._stayed = True, 0
