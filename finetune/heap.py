"""The C library's heap: what was freed stays the process's, until somebody asks."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Any

M_MMAP_THRESHOLD = -3  # of mallopt(3): blocks from this size on are the system's own, and go back to it when freed
LARGE = 1 << 20  # bytes


def give_back() -> bool:
    """Hand freed memory back to the system; whether the C library can (glibc). It takes milliseconds, and what is
    needed again costs page faults: for the moment between two ways of using memory, not for every step."""
    gc.collect()
    trim = _library("malloc_trim")
    if trim is None:
        return False
    trim(0)
    return True


def leave_no_holes() -> bool:
    """From now on, and for good, every block above 1 MB goes back when it is freed; whether the C library can. Without,
    blocks below 32 MB leave holes between those that stay. It costs page faults at every step."""
    option = _library("mallopt")
    return option is not None and bool(option(M_MMAP_THRESHOLD, LARGE))


def _library(name: str) -> Any:
    """A function of the C library of this process, None where it has none."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
