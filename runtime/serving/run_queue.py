"""How long this process's threads waited for a processor: what a computation lost to others on a busy machine.

The thread that computes asks before and after each batch, while a version may be loading beside it. A system call gives
the interpreter away, and a busy thread gives it back half a millisecond later: for the files of twenty threads that was
most of what a swap cost the robots. So files are read without giving it away, and opened by another thread.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Mapping
from contextlib import suppress

TASKS = "/proc/self/task"
LINE = 96  # bytes, more than three numbers take


class OwnQueue:
    """How long the thread that makes this has waited so far; 0 where the kernel does not count. For that thread."""

    def __init__(self) -> None:
        self._file = _open("/proc/thread-self/schedstat")

    def waited_ms(self) -> float:
        return max(0, _waited_ns(self._file)) / 1e6

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


class RunQueue:
    """Linux counts it for each thread. Of a computation that several threads share, what the one that waited longest
    waited is the least that it lost. A kernel that does not count says 0.

    `follow` and `close` are for one thread, `look` and `waited_ms` for any."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}  # by thread id; replaced, never changed
        self._left: list[int] = []  # files that somebody may still be reading

    def follow(self) -> None:
        """Find the threads that have begun or ended. To be called now and then; until then a new one is not counted."""
        left, files = self._left, {}
        with suppress(OSError):  # no such folder in this system
            for thread in os.listdir(TASKS):
                file = self._files.get(thread, -1)
                if _waited_ns(file) < 0:  # a new one, perhaps with the id of one that has ended
                    file = _open(f"{TASKS}/{thread}/schedstat")
                if file >= 0:
                    files[thread] = file
        self._left = [file for file in self._files.values() if file not in files.values()]
        self._files = files
        for file in left:
            os.close(file)

    def look(self) -> dict[str, int]:
        """Nanoseconds that each thread has waited so far."""
        waited = ((thread, _waited_ns(file)) for thread, file in self._files.items())
        return {thread: ns for thread, ns in waited if ns >= 0}

    def waited_ms(self, since: Mapping[str, int]) -> float:
        """The longest that one thread has waited since `look` gave this."""
        return max((ns - since[thread] for thread, ns in self.look().items() if thread in since), default=0) / 1e6

    def close(self) -> None:
        for file in (*self._files.values(), *self._left):
            os.close(file)
        self._files, self._left = {}, []


def _open(path: str) -> int:
    """-1 where there is none: the thread has ended meanwhile, or the kernel does not count."""
    try:
        return os.open(path, os.O_RDONLY)
    except OSError:
        return -1


def _waited_ns(file: int) -> int:
    """Of the thread whose schedstat this is; -1 when it has ended, or there is no such file."""
    if file < 0:
        return -1
    line = ctypes.create_string_buffer(LINE)
    return int(line.value.split()[1]) if _reader()(file, line, LINE - 1, 0) > 0 else -1


@functools.cache
def _reader() -> Callable[..., int]:
    """The C library's pread, which here does not let other threads run: it takes a microsecond."""
    pread = ctypes.PyDLL(None).pread
    pread.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_long)
    pread.restype = ctypes.c_ssize_t
    return pread
