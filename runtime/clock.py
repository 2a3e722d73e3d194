"""Monotonic time: deadlines and fixed rates. Wall-clock time has no place in a control loop, so it has none here."""

from __future__ import annotations

import time
from dataclasses import dataclass

now = time.monotonic


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on this machine's monotonic clock. Never compare it with one from another machine."""

    at: float  # s

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(now() + seconds)

    def remaining(self) -> float:
        """Seconds left; zero when the deadline has passed."""
        return max(0.0, self.at - now())

    def passed(self) -> bool:
        return now() >= self.at


class Rate:
    """Keeps a loop at a fixed period by scheduling the next tick, not by sleeping a fixed time.

    A tick that comes late is counted in `late`, and the schedule restarts from now: missed ticks are
    never made up in a burst, which on an arm would be a jump.
    """

    def __init__(self, hertz: float):
        if not hertz > 0:
            raise ValueError(f"rate: expected more than 0 Hz, got {hertz}")
        self.period = 1.0 / hertz  # s
        self.late = 0
        self._next = now() + self.period

    def wait(self) -> float:
        """Sleep until the next tick; return the lag in seconds (0 when on time)."""
        lag = now() - self._next
        if lag > 0:
            self.late += 1
            self._next = now() + self.period
            return lag
        time.sleep(-lag)
        self._next += self.period
        return 0.0
