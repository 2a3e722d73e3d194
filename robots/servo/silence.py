"""Which servos do not answer, and when one of them is worth a question again. Knows no bus."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

PROBE_EVERY = 5  # of so many sync reads one begins with a ping to servos that stay silent


class Silence:
    """Of the servos on one port."""

    def __init__(self, port: str):
        self._port = port
        self._reads: dict[int, int] = {}  # id -> sync reads since it fell silent, or was last tried

    def __contains__(self, servo: int) -> bool:
        return servo in self._reads

    def __len__(self) -> int:
        return len(self._reads)

    def clear(self) -> None:
        self._reads.clear()

    def fell(self, servo: int) -> None:
        """It did not answer, for all repetitions."""
        if servo not in self._reads:
            log.warning("servo %d on %s does not answer", servo, self._port)
            self._reads[servo] = PROBE_EVERY

    def ended(self, servo: int) -> None:
        """It has answered."""
        self._reads.pop(servo, None)

    def to_try(self, servos: tuple[int, ...]) -> int | None:
        """A sync read of `servos` begins: the one to ping first, if any. At most one a cycle, and each only now and
        then: waiting for all of them each time would slow the others' cycle."""
        silent = [servo for servo in servos if servo in self._reads]
        for servo in silent:
            self._reads[servo] += 1
        longest = max(silent, key=self._reads.__getitem__, default=None)
        if longest is None or self._reads[longest] < PROBE_EVERY:
            return None
        self._reads[longest] = 0
        return longest
