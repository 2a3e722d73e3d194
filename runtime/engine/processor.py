"""What this computer's processor has and what it cannot do, as far as an engine has to know."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

FACTS = Path("/proc/cpuinfo")
# Parameters; below this one thread, above it one per core. In torch two threads took 3.1 times as long as one at 1.2 M,
# and 0.60 times at 271 M; nothing between was measured (bench/RESULTS.md).
SMALL = 50_000_000


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_small(parameters: int) -> bool:
    return parameters < SMALL


def threads_for(parameters: int) -> int:
    """How many threads one inference of a model with so many parameters is computed with, unless somebody asks."""
    return 1 if is_small(parameters) else cores()


@lru_cache(maxsize=1)
def overflows_int8(facts: Path = FACTS) -> bool:
    """Whether products of 8-bit integers are added up in 16 bits, which overflow: x86 with AVX2 and without VNNI, as
    Intel before 2019 and AMD before Zen 4. False where nothing can be told."""
    try:
        lines = facts.read_text().splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return "avx2" in flags and not {"avx512_vnni", "avx_vnni"} & set(flags)
