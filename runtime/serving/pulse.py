"""How long a thread has shown no progress, in the eyes of another one that looks often."""

from __future__ import annotations

GAP_S = 2.0  # the most that one look adds


class Pulse:
    """Time in which the looker itself was held up does not count: after a stopped process, a suspended machine or a
    burst of load goes on, the thread that is watched had no chance to show progress either. No clock of its own."""

    def __init__(self) -> None:
        self.silence = 0.0  # s
        self._progress: int | None = None
        self._looked = 0.0

    def look(self, progress: int, now: float) -> float:
        """Seconds of silence; `progress` is a number that the watched thread changes as it goes on."""
        gap = min(now - self._looked, GAP_S)
        self.silence = self.silence + gap if progress == self._progress else 0.0
        self._progress, self._looked = progress, now
        return self.silence
