"""Which of several servers to ask: a pure decision over what became of the questions. No sockets, no clock of its own.

The first server is the preferred one. The one asked is left when it gives no answer in time or says that it is going;
it is held to be away for a while, twice as long each time in a row. Those preferred to the one asked are looked at now
and then, and the first that says it is ready is returned to.
"""

from __future__ import annotations

FIRST_HOLD_S = 0.5
LONGEST_HOLD_S = 10.0
CALM_S = 30.0  # after so long without being left, a server is held away for a short while again


class Failover:
    """For one thread at a time; `now` is monotonic, s."""

    def __init__(self, servers: int):
        self.active = 0
        self.left = 0  # times that a server was left
        self._until = [0.0] * servers  # held to be away
        self._hold = [0.0] * servers  # the last time, s
        self._at = [float("-inf")] * servers  # when it was left, or found away

    def order(self, now: float) -> list[int]:
        """Whom to ask: the active one, then those not held to be away, the preferred first, then the others."""
        others = [n for n in range(len(self._until)) if n != self.active]
        return [self.active, *sorted(others, key=lambda n: (self._until[n] if self.away(n, now) else 0.0, n))]

    def away(self, server: int, now: float) -> bool:
        """Whether it is held to be away."""
        return self._until[server] > now

    def use(self, server: int) -> None:
        self.active = server

    def lose(self, now: float) -> None:
        """The active server gave no answer, or says that it is going: another is active, where there is one."""
        if len(self._until) == 1:
            return
        self._put_off(self.active, now)
        self.left += 1
        self.active = self.order(now)[1]

    def due(self, now: float) -> int | None:
        """The server to look at now: the most preferred one before the active, if it is not held away any more."""
        return next((n for n in range(self.active) if not self.away(n, now)), None)

    def looked(self, server: int, ready: bool, now: float) -> bool:
        """What a look found. Whether that server is returned to; it is when it is ready."""
        if ready and server < self.active:
            self.active = server
            return True
        self._put_off(server, now)
        return False

    def _put_off(self, server: int, now: float) -> None:
        again = now - self._at[server] < CALM_S
        self._hold[server] = min(LONGEST_HOLD_S, 2 * self._hold[server]) if again else FIRST_HOLD_S
        self._until[server], self._at[server] = now + self._hold[server], now
