"""Wakes a thread that polls sockets, from any other thread."""

from __future__ import annotations

import contextlib
import os
import threading


class Bell:
    """A pipe to itself: poll `fd` for reading. Ringing costs a microsecond and needs no socket of the ringer's own."""

    def __init__(self) -> None:
        self.fd, self._ringer = os.pipe()
        self._lock = threading.Lock()  # a descriptor that is closed may be another file's in the next moment
        self._closed = False
        os.set_blocking(self.fd, False)
        os.set_blocking(self._ringer, False)

    def ring(self) -> None:
        """Nothing, once closed: a thread that was left behind in a computation may come back late."""
        with self._lock, contextlib.suppress(BlockingIOError):  # a pipe full of rings wakes as well as one
            if not self._closed:
                os.write(self._ringer, b"x")

    def silence(self) -> None:
        """Take all rings so far. Look for what was rung for after this, not before."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 4096)

    def close(self) -> None:
        """The thread that polls has ended."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self.fd)
                os.close(self._ringer)
