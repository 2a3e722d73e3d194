"""The seam between a bus and the protocols it can speak: which bytes ask, and what the bytes that came back answer.

A protocol is a small object without I/O: it builds a `Question` and sorts what was read into `Reply` objects. The bus
does the rest, for every protocol alike: flush, write, wait, echo, retries, silent servos, unplugging. To add one:

1. frames to bytes and back in a file of their own (as `packets.py`), with no knowledge of registers or ports;
2. a class with the methods of `Protocol` (as `feetech.Feetech`);
3. a `Family` (see `family.py`): that class, the control table and what else an arm must know of these servos.

An `ArmTable` names its family, and ServoArm and ServoBus need no line of new code.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple


class Question(NamedTuple):
    """What to write, and what is then to be read."""

    request: bytes
    servos: tuple[int, ...] = ()  # who answers, in this order; nobody answers a sync write or a broadcast
    size: int = 0  # bytes of data in each answer
    expected: int = 0  # bytes of all answers on the wire, when none is missing and nothing is stuffed


class Reply(NamedTuple):
    """One servo's answer."""

    data: bytes
    error: int  # the error byte as it came; `Family.decode_errors` names it


# From (data, error): half the cost of a NamedTuple's own constructor, six times in every cycle.
reply: Callable[[tuple[bytes, int]], Reply] = partial(tuple.__new__, Reply)


class Protocol(typing.Protocol):
    """Bytes of questions, and answers out of bytes. Builders raise BadRequest for what the wire cannot carry."""

    name: str
    model: tuple[int, int]  # address and size of the model number, for scans
    scan_s: float  # how long the answers to `ping_all` may take to come, beside their time on the wire

    def ping(self, servo: int) -> Question: ...

    def ping_all(self) -> Question: ...  # `servos` is empty, `expected` counts every id that there can be

    def read(self, servo: int, address: int, size: int) -> Question: ...

    def write(self, servo: int, address: int, data: bytes) -> Question: ...

    def reg_write(self, servo: int, address: int, data: bytes) -> Question: ...

    def action(self) -> Question: ...

    def reboot(self, servo: int) -> Question: ...  # nobody is waited for

    def sync_write(self, address: int, data: Mapping[int, bytes]) -> Question: ...

    def sync_read(self, servos: tuple[int, ...], address: int, size: int, plain: bool = False) -> Question:
        """`plain`: in the form where a silent servo costs no other's answer (a repetition, or one is known silent)."""
        ...

    def sort(self, question: Question, raw: bytes) -> tuple[dict[int, Reply], int]:
        """The answers to `question` in what was read so far (junk and all), in the order asked, and how many bytes to
        wait for still: 0 when every answer is there, else at least 1. Must never take an answer of another servo, size
        or checksum, nor believe a servo that answered twice and differently."""
        ...

    def found(self, raw: bytes) -> set[int]: ...  # who answered `ping_all`
