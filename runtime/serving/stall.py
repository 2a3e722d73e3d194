"""What a swap cost the thread that computes: how long work was there and none was done, before the next batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from hotpolicy.runtime.metrics import quantile

PAUSES = 1000  # newest batches that the usual pause is taken of


class SwapStall:
    """Times are monotonic, s. For the thread that computes; `figures` for any."""

    def __init__(self) -> None:
        self._served = ""  # the live version last seen
        self._ended = 0.0  # when a batch was last finished
        self._held_back = 0.0  # of the time since, what the scheduler waited for a fuller batch, s
        self._last = self._longest = self._waited = 0.0  # ms
        self._swaps = 0
        self._pauses: deque[float] = deque(maxlen=PAUSES)  # ms, before batches without a swap
        self._queued: Callable[[], float] = lambda: 0.0  # ms for which the thread has waited for a processor so far
        self._queued_before = 0.0

    def computed_by(self, queued: Callable[[], float]) -> None:
        """Another thread computes from here on."""
        self._queued, self._queued_before = queued, queued()

    def warmed_up(self, version: str) -> None:
        self._served = version

    def held_back(self, seconds: float) -> None:
        self._held_back += seconds

    def begun(self, live: str, started: float, arrived: float) -> bool:
        """A batch begins; `arrived`: the earliest of its requests. Whether another version is live than at the last."""
        pause = 1000 * max(0.0, started - max(self._ended, arrived) - self._held_back)
        if live == self._served:
            self._pauses.append(pause)
            return False
        self._served, self._swaps, self._last = live, self._swaps + 1, pause
        self._longest = max(self._longest, self._last)
        self._waited = min(self._last, self._queued() - self._queued_before)
        return True

    def finished(self, ended: float) -> None:
        self._ended, self._held_back, self._queued_before = ended, 0.0, self._queued()

    def figures(self) -> dict[str, float]:
        """Milliseconds, and how many swaps there were. `waited`: of the last, while other threads and processes had
        every processor. `usual_p99`: what 99 in 100 of the newest pauses without a swap stayed below; 0: none yet."""
        pauses = sorted(self._pauses)
        return {
            "last": self._last,
            "waited": self._waited,
            "longest": self._longest,
            "usual_p99": quantile(pauses, 0.99) if pauses else 0.0,
            "swaps": self._swaps,
        }
