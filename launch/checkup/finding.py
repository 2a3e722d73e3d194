"""One thing that a look has found, and what mends it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["ok", "warn", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    area: str  # versions, gpu, memory, disk, ports, motors, cameras, store
    level: Level
    text: str
    mend: str = ""  # the command, or the one thing to do; empty when all is well

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
