"""How long this process's threads waited for a processor: what a computation lost to others on a busy machine."""

from __future__ import annotations

import os
from collections.abc import Mapping

TASKS = "/proc/self/task"


class OwnQueue:
    """How long the thread that makes this has waited so far; 0 where the kernel does not count. For that thread."""

    def __init__(self) -> None:
        try:
            self._file = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        except OSError:
            self._file = -1

    def waited_ms(self) -> float:
        return _waited_ns(self._file) / 1e6 if self._file >= 0 else 0.0

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


class RunQueue:
    """Linux counts it for each thread. Of a computation that several threads share, what the one that waited longest
    waited is the least that it lost. A kernel that does not count says 0. For one thread at a time."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}  # by thread id
        self._threads = 0  # as the kernel counted them when the files were opened

    def look(self) -> dict[str, int]:
        """Nanoseconds that each thread has waited so far."""
        if (threads := os.stat(TASKS).st_nlink) != self._threads:
            self._open()
            self._threads = threads
        try:
            return self._read()
        except ProcessLookupError:  # one has ended, and perhaps another begun: their number says nothing
            self._open()
            self._threads = 0
        try:
            return self._read()
        except ProcessLookupError:  # and again just now
            return {}

    def waited_ms(self, since: Mapping[str, int]) -> float:
        """The longest that one thread has waited since `look` gave this."""
        return max((ns - since[thread] for thread, ns in self.look().items() if thread in since), default=0) / 1e6

    def close(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files = {}

    def _read(self) -> dict[str, int]:
        return {thread: _waited_ns(file) for thread, file in self._files.items()}

    def _open(self) -> None:
        self.close()
        for thread in os.listdir(TASKS):
            try:
                self._files[thread] = os.open(f"{TASKS}/{thread}/schedstat", os.O_RDONLY)
            except OSError:  # it has ended meanwhile, or the kernel does not count
                continue


def _waited_ns(file: int) -> int:
    """Of the thread whose schedstat this is."""
    return int(os.pread(file, 96, 0).split()[1])
