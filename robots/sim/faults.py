"""What can go wrong on a serial bus, on command: each fault changes one answer of a virtual servo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["silent", "drop", "corrupt", "truncate", "noise", "late", "split", "foreign", "stop_at_gap", "echo"]

NOISE = b"\x00\x13\xff\x7e\xff"


@dataclass(slots=True)
class Fault:
    """One kind of trouble, for one servo or for all, for a number of answers or for good.

    silent: the servo neither hears nor answers. drop: it hears, its answer is lost. corrupt: one bit is flipped.
    truncate: the last byte is missing. noise: junk comes first. late: the answer waits `delay_s`. split: its second
    half waits `delay_s`. foreign: it carries another id. stop_at_gap: after a silent servo, those asked later in a
    sync read do not answer either. echo: the bus repeats the question before the answer.
    """

    kind: Kind
    id: int | None = None  # None: every servo
    times: int | None = None  # answers it still applies to; None: until cleared
    delay_s: float = 0.0

    def concerns(self, servo: int) -> bool:
        return (self.id is None or self.id == servo) and self.times != 0

    def use(self) -> None:
        if self.times is not None:
            self.times -= 1


def _corrupt(answer: bytes) -> bytes:
    return answer[:-2] + bytes((answer[-2] ^ 0x04,)) + answer[-1:]


def _foreign(answer: bytes) -> bytes:
    """The same answer from a servo whose id is one higher; the checksum falls by one to match."""
    return answer[:2] + bytes((answer[2] + 1,)) + answer[3:-1] + bytes(((answer[-1] - 1) & 0xFF,))


DAMAGE: dict[Kind, Callable[[bytes], bytes]] = {
    "drop": lambda answer: b"",
    "corrupt": _corrupt,
    "truncate": lambda answer: answer[:-1],
    "noise": lambda answer: NOISE + answer,
    "foreign": _foreign,
}
