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

from hotpolicy.robots.servo.protocol import Reply
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
    servo, code, data = frame
    if not 0 <= servo <= BROADCAST:
        raise BadRequest(f"servo id: expected 0..{BROADCAST}, got {servo}")
    if len(data) > MAX_DATA:
        raise BadRequest(f"frame data: expected at most {MAX_DATA} bytes, got {len(data)}")
    if not 0 <= code <= 0xFF:
        raise BadRequest(f"frame code: expected one byte, got {code}")
    body = bytes((servo, len(data) + 2, code)) + data
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
    slots = b"".join([bytes((servo,)) + value for servo, value in data.items()])
    return encode(Frame(BROADCAST, SYNC_WRITE, bytes((address, sizes.pop())) + slots))


def status(servo: int, error: int, data: bytes = b"") -> bytes:
    """An answer, as a servo builds it."""
    return encode(Frame(servo, error, data))


def split_frames(buffer: bytes, final: bool = False) -> tuple[list[Frame], bytes]:
    """Whole frames in `buffer`, and the bytes that may be the start of another.

    Anything that cannot be a frame costs one byte and the search goes on, so a frame behind noise is found. With
    `final` no more bytes will come: a frame that claims to be longer than the buffer is taken for noise too.
    """
    frames: list[Frame] = []
    at = 0
    while True:
        start = buffer.find(HEADER, at)
        if start < 0:
            rest = buffer[-1:] if buffer[at:].endswith(b"\xff") else b""
            return frames, b"" if final else rest
        frame, size = _frame_at(buffer, start)
        if frame is not None:
            frames.append(frame)
            at = start + size
        elif size and not final:
            return frames, buffer[start:]
        else:
            at = start + 1


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
    answers: dict[int, Reply] = {}
    for servo, head, start, code, end in _layout(tuple(servos), size):
        # The sum of a frame and its checksum ends in FF.
        if not buffer.startswith(head, start) or ~sum(buffer[start + 2 : end]) & 0xFF or buffer[code] > MAX_ERROR:
            return None
        answers[servo] = _make(Reply, (buffer[code + 1 : end - 1], buffer[code]))
    return answers if len(answers) == len(servos) else None


_make = tuple.__new__  # half the cost of a NamedTuple's own constructor, six times in every cycle


@lru_cache(maxsize=64)
def _layout(servos: tuple[int, ...], size: int) -> tuple[tuple[int, bytes, int, int, int], ...]:
    """Of each answer: servo, first bytes, and where it starts, has its error byte and ends."""
    step = size + OVERHEAD
    return tuple(
        (servo, HEADER + bytes((servo, size + 2)), at, at + 4, at + step)
        for at, servo in zip(range(0, step * len(servos), step), servos, strict=True)
    )
