"""What a bus counts of its own troubles."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """How the bus fares, for reports."""

    questions: int = 0  # repetitions included
    retries: int = 0
    damaged: int = 0  # something came back, but not all that was asked for
    missed: int = 0  # answers that were given up
    strange: int = 0  # times that answers came which were not asked for
