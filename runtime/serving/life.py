"""The states of a server, told apart by ping and by the service manager."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Literal

State = Literal["starting", "warming", "ready", "draining", "failed", "stopped"]

# What may follow a state. Another step changes nothing: a restart that ends while the server drains does not undo that.
NEXT: Mapping[State, tuple[State, ...]] = {
    "starting": ("warming", "draining", "failed"),
    "warming": ("ready", "draining", "failed"),
    "ready": ("warming", "draining", "failed"),  # warming again: the engine crashed and is loaded anew
    "draining": ("stopped", "failed"),
    "failed": (),
    "stopped": (),
}


class Life:
    """Shared by a server's threads."""

    def __init__(self, told: Callable[[State, str], None] = lambda state, text: None):
        """`told` hears of each state entered, with a line of text, in the thread that entered it; it must not enter
        another."""
        self.failure = ""  # why the state is `failed`
        self.restarts = 0  # of the engine
        self.warm = threading.Event()  # ready for the first time, or never going to be
        self.ended = threading.Event()  # asked to stop, or failed
        self._told = told
        self._state: State = "starting"
        self._lock = threading.Lock()

    @property
    def state(self) -> State:
        return self._state

    def enter(self, state: State, text: str = "") -> bool:
        """Whether the state was entered; it is not where NEXT does not lead there."""
        with self._lock:
            if state not in NEXT[self._state]:
                return False
            self._state = state
            self._told(state, text)  # under the lock: states are told in the order they were entered
        if state == "ready":
            self.warm.set()
        return True

    def restart(self, reason: str) -> bool:
        """The engine crashed. Whether it may be loaded anew: once in a run, and of a server that was ready."""
        if self.restarts or self._state != "ready":
            return False
        if not self.enter("warming", f"the engine crashed ({reason}) and is loaded anew"):
            return False  # asked to stop just now
        self.restarts += 1
        return True

    def fail(self, reason: str) -> None:
        with self._lock:
            if self._state in ("failed", "stopped"):
                return
            self.failure, self._state = reason, "failed"
            self._told("failed", reason)
        self.warm.set()
        self.ended.set()
