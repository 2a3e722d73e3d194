"""What this computer's processor cannot do, as far as an engine has to know."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

FACTS = Path("/proc/cpuinfo")


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
