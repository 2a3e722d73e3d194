"""The states of a server, told apart by ping."""

from __future__ import annotations

import threading
from typing import Literal

State = Literal["starting", "warming", "ready", "draining", "failed", "stopped"]


class Life:
    """Shared by a server's threads; each field is written in one step."""

    def __init__(self) -> None:
        self.state: State = "starting"
        self.failure = ""  # why the state is `failed`
        self.warm = threading.Event()  # ready, or never going to be
        self.ended = threading.Event()  # asked to stop, or failed

    def ready(self) -> None:
        """The warm-up is done."""
        if self.state == "warming":
            self.state = "ready"
        self.warm.set()

    def fail(self, reason: str) -> None:
        self.failure, self.state = reason, "failed"
        self.warm.set()
        self.ended.set()
