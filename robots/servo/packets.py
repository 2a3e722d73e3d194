"""Feetech's STS/SMS serial protocol: bytes to frames and back. No port, no clock, no knowledge of registers.

A request is `FF FF ID LEN INSTRUCTION data CHECKSUM`, an answer `FF FF ID LEN ERROR data CHECKSUM`: one shape, so one
`Frame` serves both. Nothing is escaped: `FF FF` may occur inside data, and a whole valid frame too. The reader of a bus
therefore checks id and data size of every answer against its question.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple
from zlib import adler32

from hotpolicy.robots.servo.frames import split
from hotpolicy.robots.servo.protocol import Reply, reply
from hotpolicy.runtime.errors import BadRequest

HEADER = b"\xff\xff"
BROADCAST = 0xFE
MAX_ID = 0xFD
MAX_DATA = 0xFA - 2  # bytes of data in one frame
OVERHEAD = 6  # bytes of a frame that are not data
MAX_ERROR = 0x7F  # an answer's error byte never has bit 7, and sync instructions always do


class Instruction(IntEnum):
    PING = 0x01
    READ = 0x02
    WRITE = 0x03
    REG_WRITE = 0x04
    ACTION = 0x05
    REBOOT = 0x08
    SYNC_READ = 0x82
    SYNC_WRITE = 0x83


SYNC_WRITE = int(Instruction.SYNC_WRITE)  # a plain number: cheaper in every comparison


class Frame(NamedTuple):
    id: int
    code: int  # the instruction of a request, the error bits of an answer
    data: bytes


def checksum(body: bytes) -> int:
    """Of everything between header and checksum."""
    return ~sum(body) & 0xFF


def encode(frame: Frame) -> bytes:
    """Raises BadRequest for an id, code or size that the wire cannot carry."""
    return _encoded(*frame)


def _encoded(servo: int, code: int, data: bytes) -> bytes:
    if not 0 <= servo <= BROADCAST:
        raise BadRequest(f"servo id: expected 0..{BROADCAST}, got {servo}")
    if len(data) > MAX_DATA:
        raise BadRequest(f"frame data: expected at most {MAX_DATA} bytes, got {len(data)}")
    if not 0 <= code <= 0xFF:
        raise BadRequest(f"frame code: expected one byte, got {code}")
    body = b"%c%c%c%b" % (servo, len(data) + 2, code, data)
    return b"%b%b%c" % (HEADER, body, ~sum(body) & 0xFF)


def ping(servo: int) -> bytes:
    return encode(Frame(servo, Instruction.PING, b""))


def read(servo: int, address: int, size: int) -> bytes:
    return encode(Frame(servo, Instruction.READ, bytes((address, size))))


def write(servo: int, address: int, data: bytes) -> bytes:
    return encode(Frame(servo, Instruction.WRITE, bytes((address,)) + data))


def reg_write(servo: int, address: int, data: bytes) -> bytes:
    """Like `write`, but the servo keeps it until `action`."""
    return encode(Frame(servo, Instruction.REG_WRITE, bytes((address,)) + data))


def action(servo: int = BROADCAST) -> bytes:
    return encode(Frame(servo, Instruction.ACTION, b""))


def reboot(servo: int) -> bytes:
    return encode(Frame(servo, Instruction.REBOOT, b""))


def sync_read(servos: Iterable[int], address: int, size: int) -> bytes:
    return encode(Frame(BROADCAST, Instruction.SYNC_READ, bytes((address, size, *servos))))


def sync_write(address: int, data: Mapping[int, bytes]) -> bytes:
    """Raises BadRequest when `data` is empty or its values differ in size."""
    sizes = set(map(len, data.values()))
    if len(sizes) != 1:
        raise BadRequest(f"sync write: expected one size for all servos, got sizes {sorted(sizes)}")
    slots = b"".join([b"%c%b" % item for item in data.items()])
    head, so_far = _sync_write_head(address, sizes.pop(), len(slots))
    return b"%b%b%c" % (head, slots, ~adler32(slots, so_far) & 0xFF)  # the sum of all, see `_layout`


@lru_cache(maxsize=64)
def _sync_write_head(address: int, size: int, slots: int) -> tuple[bytes, int]:
    """A sync write up to its slots, of which there are so many bytes, and the sum of that: a control loop's writes
    differ only in what follows."""
    head = encode(Frame(BROADCAST, SYNC_WRITE, bytes((address, size)) + bytes(slots)))[:7]
    return head, sum(head[len(HEADER) :])


def status(servo: int, error: int, data: bytes = b"") -> bytes:
    """An answer, as a servo builds it."""
    return _encoded(servo, error, data)


def split_frames(buffer: bytes, final: bool = False) -> tuple[list[Frame], bytes]:
    """Whole frames in `buffer`, and the bytes that may be the start of another; see `frames.split`."""
    return split(buffer, HEADER, _frame_at, final)


def _frame_at(buffer: bytes, start: int) -> tuple[Frame | None, int]:
    """The frame at `start` and its size on the wire; (None, 0) for noise, (None, 1) for one not yet whole."""
    if len(buffer) < start + 4:
        return (None, 1) if len(buffer) < start + 3 or buffer[start + 2] <= BROADCAST else (None, 0)
    servo, length = buffer[start + 2], buffer[start + 3]
    if servo > BROADCAST or not 2 <= length <= MAX_DATA + 2:
        return None, 0
    end = start + length + 4
    if len(buffer) < end:
        return None, 1
    if buffer[end - 1] != checksum(buffer[start + 2 : end - 1]):
        return None, 0
    return Frame(servo, buffer[start + 4], bytes(buffer[start + 5 : end - 1])), length + 4


def exact_answers(buffer: bytes, servos: Sequence[int], size: int) -> dict[int, Reply] | None:
    """The answers of `servos`, each with `size` bytes of data, when `buffer` is these and nothing else; otherwise None.

    This is the quick way for the usual case; `split_frames` finds what can be saved from the rest.
    """
    if len(buffer) != (size + OVERHEAD) * len(servos):
        return None
    answers = {}
    for servo, head, at, body, error_at, data in _layout(tuple(servos), size):
        error = buffer[error_at]
        if not buffer.startswith(head, at) or error > MAX_ERROR or adler32(buffer[body]) & 0xFF:
            return None
        answers[servo] = reply((buffer[data], error))
    return answers if len(answers) == len(servos) else None


@lru_cache(maxsize=64)
def _layout(servos: tuple[int, ...], size: int) -> list[tuple[int, bytes, int, slice, int, slice]]:
    """Of each answer: id, first bytes and where they are, what adds up to 0xFF (all behind the header, with the
    checksum), and where error and data are.

    Adler-32 counts from 1, and its low half is the sum modulo 65521, more than a frame can have: its last byte is 0
    where the sum's is 0xFF. It takes a third of the time of `sum`.
    """
    rows = []
    for index, servo in enumerate(servos):
        at, end = (OVERHEAD + size) * index, (OVERHEAD + size) * (index + 1)
        rows.append((servo, HEADER + bytes((servo, size + 2)), at, slice(at + 2, end), at + 4, slice(at + 5, end - 1)))
    return rows
