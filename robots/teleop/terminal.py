"""A terminal that hands over each key as it is pressed, and gets its old settings back however the program ends."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable
from types import FrameType
from typing import Any

from hotpolicy.robots.teleop.keys import settle, split_keys
from hotpolicy.runtime import clock
from hotpolicy.runtime.errors import ConfigError

log = logging.getLogger(__name__)

# An escape with nothing behind it for this long is the key, not the start of an arrow. Over a slow line the bytes of
# one key still travel together.
ESCAPE_S = 0.1
SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # would end the program without running atexit


class Terminal:
    """Use as a context manager or call `close`. Control-C interrupts as ever.

    Nothing is changed but the terminal's mode: the descriptor stays blocking, for the shell shares it.
    """

    def __init__(self, fd: int | None = None, now: Callable[[], float] = clock.now):
        """`fd`: standard input when None. Raises ConfigError when it is no terminal."""
        self._fd = _standard_input() if fd is None else fd
        self._now = now
        self._remainder = b""
        self._heard_at = 0.0  # s, when the last byte came
        self._handlers: list[signal.Signals] = []
        self.gone = False  # the line was cut: nobody is there any more
        try:
            self._saved: list[Any] | None = termios.tcgetattr(self._fd)
        except termios.error as error:
            raise ConfigError(f"keyboard: expected a terminal, got descriptor {self._fd}, which is none") from error
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        atexit.register(self.close)
        self._catch_signals()
        tty.setcbreak(self._fd, termios.TCSANOW)
        termios.tcflush(self._fd, termios.TCIFLUSH)  # typed before anyone listened

    def pressed(self) -> list[str]:
        """The keys pressed since the last call, in order; never waits."""
        keys: list[str] = []
        while data := self._read():
            more, self._remainder = split_keys(self._remainder + data)
            keys += more
            self._heard_at = self._now()
        if self._remainder and self._now() - self._heard_at >= ESCAPE_S:
            keys += settle(self._remainder)
            self._remainder = b""
        return keys

    def close(self) -> None:
        """Give the terminal its old settings back; more than once is harmless."""
        saved, self._saved = self._saved, None
        if saved is None:
            return
        atexit.unregister(self.close)
        self._release_signals()
        with contextlib.suppress(termios.error):  # hung up: there is nothing to restore
            termios.tcflush(self._fd, termios.TCIFLUSH)  # keys meant for the arm are none for the shell
            termios.tcsetattr(self._fd, termios.TCSANOW, saved)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _read(self) -> bytes:
        if self.gone or self._saved is None or not self._poll.poll(0):
            return b""
        try:
            data = os.read(self._fd, 1024)
        except OSError as error:  # the other end of a pseudo-terminal, such as an SSH session, is gone
            log.warning("keyboard: the terminal is gone: %s", error.strerror)
            self.gone = True
            return b""
        self.gone = not data
        return data

    def _catch_signals(self) -> None:
        """Where the program has no handler of its own; those that have one leave by a way that runs atexit."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, self._ended)
                self._handlers.append(number)

    def _release_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may; a handler left behind restores nothing twice
        for number in self._handlers:
            if signal.getsignal(number) == self._ended:
                signal.signal(number, signal.SIG_DFL)
        self._handlers.clear()

    def _ended(self, number: int, frame: FrameType | None) -> None:
        self.close()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # and now end as without us


def _standard_input() -> int:
    try:
        return sys.stdin.fileno()
    except (AttributeError, OSError, ValueError) as error:  # none at all, replaced, or closed
        raise ConfigError("keyboard: expected a terminal on standard input, there is none") from error
