"""What can go wrong on a serial bus, on command: each fault changes what a virtual servo answers, or its port."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal[
    "silent", "drop", "corrupt", "truncate", "noise", "late", "split", "foreign", "stop_at_gap", "echo", "overload",
    "unplug",
]  # fmt: skip

KINDS: tuple[Kind, ...] = get_args(Kind)
NOISE = b"\x00\x13\xff\x7e\xff"
# What becomes of an answer, whatever the protocol.
DAMAGE: Mapping[Kind, Callable[[bytes], bytes]] = {
    "drop": lambda answer: b"",
    "corrupt": lambda answer: answer[:-2] + bytes((answer[-2] ^ 0x04,)) + answer[-1:],
    "truncate": lambda answer: answer[:-1],
    "noise": lambda answer: NOISE + answer,
}


@dataclass(slots=True)
class Fault:
    """One kind of trouble, for one servo or for all, for a number of answers or for good.

    silent: the servo neither hears nor answers. drop: it hears, its answer is lost. corrupt: one bit is flipped.
    truncate: the last byte is missing. noise: junk comes first. late: the answer waits `delay_s`. split: its second
    half waits `delay_s`. foreign: it carries another id. stop_at_gap: after a silent servo, those asked later in a
    sync read do not answer either. echo: the bus repeats the question before the answer. overload: the servo's overload
    protection has just tripped. unplug: the port goes away at the next question (once, unless `times` says otherwise),
    and comes back after `delay_s` (0: it stays away).
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
