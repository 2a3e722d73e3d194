"""One request of several robots: answered when each of them has been."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from hotpolicy.runtime.scheduler import Outcome


class Rows:
    """Used from any thread; `done` is called once, by the thread that takes the last outcome."""

    def __init__(self, count: int, done: Callable[[Sequence[Outcome]], None]):
        self._lock = threading.Lock()
        self._outcomes: dict[int, Outcome] = {}
        self._count, self._done = count, done

    def taker(self, n: int) -> Callable[[Outcome], None]:
        return lambda outcome: self.take(n, outcome)

    def take(self, n: int, outcome: Outcome) -> None:
        with self._lock:
            self._outcomes[n] = outcome
            complete = len(self._outcomes) == self._count
        if complete:
            self._done([self._outcomes[n] for n in range(self._count)])
