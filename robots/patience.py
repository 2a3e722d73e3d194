"""What the watchdog decides: when the last action is too old, and what becomes of an arm that waits for the next one.
Knows a clock, and no arm."""

from __future__ import annotations

import math
from collections.abc import Callable

from hotpolicy.robots.bounds import Fallback, Limits


class Patience:
    """Of one arm. It is told what was done, and says what to do."""

    def __init__(self, limits: Limits, now: Callable[[], float]):
        self.holding = False  # the arm was stopped for want of actions, and none was accepted since
        self._limits = limits
        self._now = now
        self._accepted_at: float | None = None  # None: nothing to stop, the arm is where it was
        self._held_at = 0.0  # when waiting for actions began
        self._stepped_at = -math.inf  # when it last took a step to the safe pose

    def accept(self) -> None:
        """An action was sent."""
        self._accepted_at = self._now()
        self.holding = False

    def hold(self) -> None:
        """The arm is held for want of actions from now on."""
        self.holding, self._held_at = True, self._now()

    def start_over(self) -> None:
        """The arm was held, switched or found again on purpose: as before the first action."""
        self._accepted_at, self.holding = None, False

    def end(self) -> None:
        """The arm is stopped for good; an arm that was held stays so."""
        self._accepted_at = None

    @property
    def over(self) -> bool:
        """Whether it is time to wait: the last accepted action is too old, or waiting has begun already."""
        late = self._accepted_at is not None and self._now() - self._accepted_at > self._limits.watchdog_s
        return self.holding or late

    def fallback(self) -> Fallback:
        """What to do now with an arm that is held: nothing more, another step to the safe pose, or let go."""
        if self._now() - self._held_at <= self._limits.fallback_s:
            return "hold"
        if self._limits.fallback == "safe_pose":
            if self._now() - self._stepped_at < self._limits.tick_s:
                return "hold"
            self._stepped_at = self._now()
        return self._limits.fallback
