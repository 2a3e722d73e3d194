"""How long a bus waits for its servos."""

from __future__ import annotations

from dataclasses import dataclass

BITS_PER_BYTE = 10  # 8N1 on the wire


@dataclass(frozen=True, slots=True)
class Timing:
    """How long to wait. The wire's own time is computed; the rest comes on top."""

    baud: int = 1_000_000  # bit/s
    return_delay_us: float = 500.0  # longest time a servo waits before it answers
    margin_ms: float = 10.0  # adapter and operating system; raise it for a virtual bus on a loaded machine
    retries: int = 2  # immediate repetitions of a question
    budget_ms: float = 30.0  # no repetition starts or waits beyond this, counted from the first question

    def wait_s(self, size: int, answers: int) -> float:
        """Time to allow for `size` bytes on the wire with `answers` servos answering."""
        wire = size * BITS_PER_BYTE / self.baud
        return wire + answers * self.return_delay_us * 1e-6 + self.margin_ms * 1e-3
