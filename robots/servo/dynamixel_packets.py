"""Dynamixel's protocol 2.0: bytes to frames and back. No port, no clock, no knowledge of registers.

A frame is `FF FF FD 00 ID LEN LEN INSTRUCTION data CRC CRC`; an answer has the instruction STATUS and begins its data
with an error byte. Inside of a frame each `FF FF FD` is sent as `FF FF FD FD` (stuffing), so the header never occurs
in a whole frame: one that begins inside of another proves the outer one broken. The one exception is the answer to a
fast sync read, in which all servos share one frame: it is not stuffed, and each servo adds its CRC of all bytes so far.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from hotpolicy.robots.servo.crc import crc16, crc_of_word
from hotpolicy.robots.servo.frames import split
from hotpolicy.runtime.errors import BadRequest

HEADER = b"\xff\xff\xfd\x00"
BROADCAST = 0xFE
MAX_ID = 0xFC  # 0xFD would be taken for stuffing
MAX_LENGTH = 1024  # of a frame's instruction, data and CRC; the servos' own buffers hold no more
PREFIX = 7  # bytes before the instruction: header, id, length
OVERHEAD = 11  # bytes of an answer that are not data
SLOT_OVERHEAD = 4  # the same of one servo's slot in a fast answer: error, id, CRC
FAST_OVERHEAD = 8  # and of the frame around the slots, whose CRC is the last slot's
STUFFED, PLAIN = b"\xff\xff\xfd\xfd", b"\xff\xff\xfd"
ALERT = 0x80  # bit of the error byte: register hardware_error says what is wrong


class Instruction(IntEnum):
    PING = 0x01
    READ = 0x02
    WRITE = 0x03
    REG_WRITE = 0x04
    ACTION = 0x05
    FACTORY_RESET = 0x06
    REBOOT = 0x08
    CLEAR = 0x10
    STATUS = 0x55
    SYNC_READ = 0x82
    SYNC_WRITE = 0x83
    FAST_SYNC_READ = 0x8A


class Frame(NamedTuple):
    id: int
    code: int  # the instruction; STATUS for an answer
    data: bytes  # of an answer: the error byte, then what was asked for


def encode(frame: Frame) -> bytes:
    """Raises BadRequest for an id, code or size that the wire cannot carry."""
    if not (0 <= frame.id <= MAX_ID or frame.id == BROADCAST):
        raise BadRequest(f"servo id: expected 0..{MAX_ID} or {BROADCAST}, got {frame.id}")
    if not 0 <= frame.code <= 0xFF or frame.code in (0xFD, 0xFF):
        raise BadRequest(f"frame code: expected a byte other than 0xfd and 0xff, got {frame.code}")
    body = bytes((frame.code,)) + frame.data.replace(PLAIN, STUFFED)
    length = len(body) + 2
    if length > MAX_LENGTH:
        raise BadRequest(f"frame data: expected at most {MAX_LENGTH - 3} bytes once stuffed, got {len(body) - 1}")
    wire = HEADER + bytes((frame.id, length & 0xFF, length >> 8)) + body
    return wire + crc16(wire).to_bytes(2, "little")


def ping(servo: int) -> bytes:
    """The answer's data are the model number (2 bytes) and the firmware (1 byte)."""
    return encode(Frame(servo, Instruction.PING, b""))


def read(servo: int, address: int, size: int) -> bytes:
    return encode(Frame(servo, Instruction.READ, _words(address, size)))


def write(servo: int, address: int, data: bytes) -> bytes:
    return encode(Frame(servo, Instruction.WRITE, _words(address) + data))


def reg_write(servo: int, address: int, data: bytes) -> bytes:
    """Like `write`, but the servo keeps it until `action`."""
    return encode(Frame(servo, Instruction.REG_WRITE, _words(address) + data))


def action(servo: int = BROADCAST) -> bytes:
    return encode(Frame(servo, Instruction.ACTION, b""))


def reboot(servo: int) -> bytes:
    return encode(Frame(servo, Instruction.REBOOT, b""))


def sync_read(servos: Iterable[int], address: int, size: int) -> bytes:
    """Each servo answers with a frame of its own."""
    return encode(Frame(BROADCAST, Instruction.SYNC_READ, _words(address, size) + bytes(servos)))


def fast_sync_read(servos: Iterable[int], address: int, size: int) -> bytes:
    """All servos answer with one frame; the first that is silent ends it."""
    return encode(Frame(BROADCAST, Instruction.FAST_SYNC_READ, _words(address, size) + bytes(servos)))


def sync_write(address: int, data: Mapping[int, bytes]) -> bytes:
    """Raises BadRequest when `data` is empty or its values differ in size."""
    sizes = set(map(len, data.values()))
    if len(sizes) != 1:
        raise BadRequest(f"sync write: expected one size for all servos, got sizes {sorted(sizes)}")
    size = sizes.pop()
    slots = b"".join([b"%c%b" % item for item in data.items()])
    if PLAIN in slots or len(slots) > MAX_LENGTH - 7:
        return encode(Frame(BROADCAST, Instruction.SYNC_WRITE, _words(address, size) + slots))
    head, crc = _sync_write_head(address, size, len(slots))
    return b"%b%b%b" % (head, slots, crc16(slots, crc).to_bytes(2, "little"))


@lru_cache(maxsize=64)
def _sync_write_head(address: int, size: int, slots: int) -> tuple[bytes, int]:
    """A sync write up to its slots, of which there are so many bytes, and the CRC of that: a control loop's writes
    differ only in what follows."""
    length = 1 + 4 + slots + 2
    head = HEADER + bytes((BROADCAST, length & 0xFF, length >> 8, Instruction.SYNC_WRITE)) + _words(address, size)
    return head, crc16(head)


def status(servo: int, error: int, data: bytes = b"") -> bytes:
    """An answer, as a servo builds it."""
    return encode(Frame(servo, Instruction.STATUS, bytes((error,)) + data))


def fast_head(servos: int, size: int) -> bytes:
    """How the shared answer of `servos` servos begins, as the first of them builds it; its length counts them all."""
    length = 1 + servos * (size + SLOT_OVERHEAD)
    return HEADER + bytes((BROADCAST, length & 0xFF, length >> 8, Instruction.STATUS))


def fast_slot(before: int, servo: int, error: int, data: bytes) -> tuple[bytes, int]:
    """What one servo adds to a shared answer, and the CRC with it; `before` is the CRC of what is on the wire."""
    slot = b"%c%c%b" % (error, servo, data)
    crc = crc16(slot, before)
    low, high = crc & 0xFF, crc >> 8
    return b"%b%c%c" % (slot, low, high), crc_of_word(low << 8 | high, crc)


def split_frames(buffer: bytes, final: bool = False) -> tuple[list[Frame], bytes]:
    """Whole frames in `buffer`, and the bytes that may be the start of another; see `frames.split`."""
    return split(buffer, HEADER, _frame_at, final)


def split_fast(buffer: bytes, servos: int, size: int) -> list[tuple[int, int, bytes]]:
    """The (id, error, data) slots in the shared answer of `servos` servos with `size` bytes of data each.

    Slots before a gap or a damaged byte count, as each has a CRC of its own; those behind it do not.
    """
    head = fast_head(servos, size)
    best: list[tuple[int, int, bytes]] = []
    start = buffer.find(head)
    while start >= 0:
        slots = _slots(buffer, start + len(head), crc16(head), servos, size)
        best = slots if len(slots) > len(best) else best
        start = buffer.find(head, start + 1)
    return best


def _slots(buffer: bytes, at: int, crc: int, servos: int, size: int) -> list[tuple[int, int, bytes]]:
    slots = []
    for _ in range(servos):
        end = at + size + 2
        crc = crc16(buffer[at:end], crc)
        if crc != int.from_bytes(buffer[end : end + 2], "little") or len(buffer) < end + 2:
            break
        crc = crc16(buffer[end : end + 2], crc)
        slots.append((buffer[at + 1], buffer[at], buffer[at + 2 : end]))
        at = end + 2
    return slots


def _frame_at(buffer: bytes, start: int) -> tuple[Frame | None, int]:
    """The frame at `start` and its size on the wire; (None, 0) for noise, (None, 1) for one not yet whole."""
    if len(buffer) < start + PREFIX:
        return None, 1
    servo, length = buffer[start + 4], buffer[start + 5] | buffer[start + 6] << 8
    if (servo > MAX_ID and servo != BROADCAST) or not 3 <= length <= MAX_LENGTH:
        return None, 0
    end = start + PREFIX + length
    shared = servo == BROADCAST and buffer[start + PREFIX : start + PREFIX + 1] == b"\x55"
    if not shared and buffer.find(HEADER, start + PREFIX, end - 2) >= 0:  # data and CRC may look like one together
        return None, 0
    if len(buffer) < end:
        return None, 1
    if int.from_bytes(buffer[end - 2 : end], "little") != crc16(buffer[start : end - 2]):
        return None, 0
    body = buffer[start + PREFIX + 1 : end - 2]
    data = bytes(body) if shared else body.replace(STUFFED, PLAIN)
    return Frame(servo, buffer[start + PREFIX], data), PREFIX + length


def _words(*values: int) -> bytes:
    """16-bit numbers, low byte first. Raises BadRequest for one that does not fit."""
    for value in values:
        if not 0 <= value <= 0xFFFF:
            raise BadRequest(f"address or size: expected 0..65535, got {value}")
    return b"".join(value.to_bytes(2, "little") for value in values)
