"""Which version each session's episode began with. Its lock is held for a dictionary access, never longer."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from hotpolicy.runtime.clock import now
from hotpolicy.runtime.versions.checks import ServedPolicy

MOST = 1024  # sessions; beyond, the one that asked longest ago moves to the live version at its next request
IDLE_S = 600.0  # an episode that has been silent for this long holds no version any more


@dataclass(frozen=True, slots=True)
class Pin:
    episode: int
    policy: ServedPolicy
    asked_at: float  # monotonic, s


class Pins:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pins: OrderedDict[str, Pin] = OrderedDict()  # by session; the one that asked last comes last

    def hold(self, session: str, episode: int, live: Callable[[], ServedPolicy]) -> ServedPolicy:
        """The policy the session's episode began with; a new episode begins with what is live now."""
        with self._lock:
            pin = self._pins.get(session)
            policy = pin.policy if pin and pin.episode == episode else live()
            self._pins[session] = Pin(episode, policy, now())
            self._pins.move_to_end(session)
            if len(self._pins) > MOST:
                self._pins.popitem(last=False)
            return policy

    def drop(self, session: str) -> None:
        if session not in self._pins:  # without the lock: most sessions hold nothing, and must not wait for it
            return
        with self._lock:
            self._pins.pop(session, None)

    def release(self, version: str) -> None:
        """Let no episode go on with a version that was found faulty."""
        with self._lock:
            for session in [session for session, pin in self._pins.items() if pin.policy.version == version]:
                del self._pins[session]

    def clear(self) -> None:
        """Let every episode go on with what is live: what they hold belongs to an engine that crashed."""
        with self._lock:
            self._pins.clear()

    def sweep(self) -> None:
        """Release what sessions hold that have been silent for long."""
        with self._lock:
            while self._pins and now() - next(iter(self._pins.values())).asked_at > IDLE_S:
                self._pins.popitem(last=False)

    def policies(self) -> list[ServedPolicy]:
        with self._lock:
            return [pin.policy for pin in self._pins.values()]

    def versions(self) -> dict[str, int]:
        return dict(Counter(policy.version for policy in self.policies()))
