"""How often something is said in a log: a flood of trouble is not one of lines."""

from __future__ import annotations

from hotpolicy.runtime.clock import now


class Seldom:
    """Counts events, and says once in a while that it is time to tell of them. For one thread at a time."""

    def __init__(self, every_s: float = 5.0):
        self._every_s = every_s
        self._told = float("-inf")
        self._count = 0

    def due(self) -> int:
        """Call at each event. How many there were since they were last told of, if it is time; else 0."""
        self._count += 1
        if now() - self._told < self._every_s:
            return 0
        count, self._count, self._told = self._count, 0, now()
        return count
