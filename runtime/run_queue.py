"""How long a thread has waited for a processor: what it lost to others on a busy machine."""

from __future__ import annotations

import os
import threading


class RunQueue:
    """Of the thread that makes it; Linux counts it. Says 0 where the kernel does not. Threads that a library starts
    for its own computations are not in it."""

    def __init__(self) -> None:
        try:
            self._file: int | None = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)
        except OSError:  # a kernel without it
            self._file = None

    def waited_ms(self) -> float:
        """Since the thread began."""
        return 0.0 if self._file is None else int(os.pread(self._file, 96, 0).split()[1]) / 1e6

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
