"""One key that stops the arm, for programs that read no other: a thread that waits for it in the terminal."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from hotpolicy.robots.teleop.controls import STOP
from hotpolicy.robots.teleop.terminal import Terminal
from hotpolicy.runtime.errors import RobotError

log = logging.getLogger(__name__)

LOOK_S = 0.02


class StopKey:
    """Calls `stop` with the reason when the key is pressed. A context manager; it owns the terminal meanwhile."""

    def __init__(
        self,
        stop: Callable[[str], None],
        terminal: Terminal | None = None,
        others: Mapping[str, Callable[[], object]] | None = None,
    ):
        """`others`: further keys and what to call, in this thread. Raises ConfigError when standard input is no
        terminal."""
        self._stop, self._others = stop, others or {}
        self._terminal = terminal or Terminal()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._wait, name="stop-key", daemon=True)
        self._thread.start()

    def __enter__(self) -> StopKey:
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()
        self._terminal.close()

    def _wait(self) -> None:
        while not self._end.wait(LOOK_S) and not self._terminal.gone:
            keys = self._terminal.pressed()
            if STOP in keys:
                try:
                    self._stop("key x")
                except RobotError as error:
                    log.critical("%s", error)
            for key in keys:
                if key in self._others:
                    self._others[key]()
