"""How long this process's threads waited for a processor: what a computation lost to others on a busy machine."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

TASKS = "/proc/self/task"
# Of the C library, called without giving up the interpreter: os.pread gives it up for each of some twenty threads, a
# microsecond's reading each, and beside a busy thread gets it back half a millisecond later.
_pread = ctypes.PyDLL(None, use_errno=True).pread
_pread.argtypes = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_longlong
_pread.restype = ctypes.c_ssize_t


class RunQueue:
    """Linux counts it for each thread. Of a computation that several threads share, what the one that waited longest
    waited is the least that it lost. A kernel that does not count says 0. For one thread at a time."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}  # by thread id
        self._buffer = ctypes.create_string_buffer(96)
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
        return {thread: int(self._text(file).split()[1]) for thread, file in self._files.items()}

    def _text(self, file: int) -> bytes:
        length = _pread(file, self._buffer, len(self._buffer), 0)
        if length < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))  # a ProcessLookupError where the thread has ended
        return self._buffer.raw[:length]

    def _open(self) -> None:
        self.close()
        for thread in os.listdir(TASKS):
            try:
                self._files[thread] = os.open(f"{TASKS}/{thread}/schedstat", os.O_RDONLY)
            except OSError:  # it has ended meanwhile, or the kernel does not count
                continue
