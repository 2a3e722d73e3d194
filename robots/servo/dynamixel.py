"""Dynamixel's X series on a bus: questions and answers, and what an arm must know of the family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from hotpolicy.robots.servo import dynamixel_packets as packets
from hotpolicy.robots.servo.crc import crc16
from hotpolicy.robots.servo.dynamixel_packets import BROADCAST, FAST_OVERHEAD, OVERHEAD, SLOT_OVERHEAD, Instruction
from hotpolicy.robots.servo.dynamixel_registers import (
    ALERT,
    BAUD_RATES,
    MODELS,
    OFFSET_LIMIT,
    WATCHDOG_TRIPPED,
    WATCHDOG_UNIT_S,
    XSERIES,
    decode_errors,
    decode_hardware,
)
from hotpolicy.robots.servo.family import Details, Family, Watchdog
from hotpolicy.robots.servo.protocol import Question, Reply, reply

PING_DATA = 3  # bytes: model and firmware
PING_SIZE = PING_DATA + OVERHEAD
FAST_TRIES = 3  # fast sync reads that fail one after another before the bus does without
MARK = packets.PREFIX  # where a request has its instruction
ANSWER = len(packets.HEADER) + 4  # bytes of an answer before its error byte
# A servo that hears nothing for so long stops where it is. Longer than the period of a 5 Hz loop, so that it trips when
# a program hangs and not when it is slow; what happens after a pause is in watchdog.py.
WATCHDOG_S = 0.5
CACHED = 64  # a control loop asks the same few questions each cycle


class Dynamixel:
    """Implements protocol.Protocol. Remembers whether the servos of its bus can do fast sync reads.

    Servos with old firmware do not answer one at all, so it is tried: the first that fails is repeated in the plain
    form by the bus, and after FAST_TRIES failures in a row it is not tried again.
    """

    name = "Dynamixel 2.0"
    model = (XSERIES["model"].address, XSERIES["model"].size)
    scan_s = 0.8  # they answer one after another, by id; the vendor's SDK allows 3 ms for each id there can be

    def __init__(self, fast: bool = True):
        self._tries = FAST_TRIES if fast else 0

    @property
    def fast(self) -> bool:
        """Whether fast sync reads are used."""
        return self._tries > 0

    def ping(self, servo: int) -> Question:
        return _question(packets.ping(servo), (servo,), PING_DATA)

    def ping_all(self) -> Question:
        return Question(packets.ping(BROADCAST), expected=PING_SIZE * (packets.MAX_ID + 1))

    def read(self, servo: int, address: int, size: int) -> Question:
        return _question(packets.read(servo, address, size), (servo,), size)

    def write(self, servo: int, address: int, data: bytes) -> Question:
        return _question(packets.write(servo, address, data), (servo,), 0)

    def reg_write(self, servo: int, address: int, data: bytes) -> Question:
        return _question(packets.reg_write(servo, address, data), (servo,), 0)

    def action(self) -> Question:
        return Question(packets.action())

    def reboot(self, servo: int) -> Question:
        return Question(packets.reboot(servo))

    def sync_write(self, address: int, data: Mapping[int, bytes]) -> Question:
        return Question(packets.sync_write(address, data))

    def sync_read(self, servos: tuple[int, ...], address: int, size: int, plain: bool = False) -> Question:
        if plain or not self._tries or len(servos) < 2:
            return _sync_read(servos, address, size)
        self._tries -= 1  # given back when it is answered
        return _fast_sync_read(servos, address, size)

    def sort(self, question: Question, raw: bytes) -> tuple[dict[int, Reply], int]:
        request, servos, size, expected = question
        if request[MARK] == Instruction.FAST_SYNC_READ:
            return self._sort_fast(servos, size, expected, raw)
        answers = exact_answers(raw, servos, size)
        if answers is None:
            answers = _search(raw, servos, size)
        missing = len(servos) - len(answers)
        return answers, missing and max(1, missing * (size + OVERHEAD) - len(packets.split_frames(raw)[1]))

    def found(self, raw: bytes) -> set[int]:
        frames, _ = packets.split_frames(raw, final=True)
        return {frame.id for frame in frames if frame.code == Instruction.STATUS and frame.id != BROADCAST}

    def _sort_fast(self, servos: tuple[int, ...], size: int, expected: int, raw: bytes) -> tuple[dict[int, Reply], int]:
        exact = exact_fast(raw, servos, size)
        if exact is not None:
            self._tries = FAST_TRIES
            return exact, 0
        slots = packets.split_fast(raw, len(servos), size)
        answers = {id: Reply(data, error) for id, error, data in slots if id in servos}
        if len(answers) == len(servos):
            self._tries = FAST_TRIES
            return answers, 0
        start = raw.find(packets.fast_head(len(servos), size))
        return answers, max(1, expected - (len(raw) - start if start >= 0 else 0))


def exact_answers(raw: bytes, servos: Iterable[int], size: int) -> dict[int, Reply] | None:
    """The answers of `servos`, each with `size` bytes of data, when `raw` is these, unstuffed, and nothing else;
    otherwise None. This is the quick way for the usual case; `split_frames` finds what can be saved from the rest."""
    answers: dict[int, Reply] = {}
    at = 0
    for servo in servos:
        head, crc = _answer_head(servo, size)
        start, end = at + ANSWER, at + size + OVERHEAD
        if raw[at:start] != head or len(raw) < end:
            return None
        body = raw[start : end - 2]
        if crc16(body, crc) != raw[end - 2] | raw[end - 1] << 8 or packets.PLAIN in body:
            return None
        answers[servo] = reply((body[1:], body[0]))
        at = end
    return answers if at == len(raw) else None


def exact_fast(raw: bytes, servos: tuple[int, ...], size: int) -> dict[int, Reply] | None:
    """The same for a shared answer: its last CRC is of all of it."""
    head, crc = _fast_head(len(servos), size)
    at, step = len(head), size + SLOT_OVERHEAD
    if not raw.startswith(head) or len(raw) != at + step * len(servos):
        return None
    if crc16(raw[at:-2], crc) != raw[-2] | raw[-1] << 8 or raw[at + 1 :: step] != bytes(servos):
        return None
    return {
        servo: reply((raw[start + 2 : start + 2 + size], raw[start]))
        for servo, start in zip(servos, range(at, len(raw), step), strict=True)
    }


@lru_cache(maxsize=64)
def _fast_head(servos: int, size: int) -> tuple[bytes, int]:
    head = packets.fast_head(servos, size)
    return head, crc16(head)


@lru_cache(maxsize=1024)
def _answer_head(servo: int, size: int) -> tuple[bytes, int]:
    """How the answer of `servo` begins when nothing in it is stuffed, and the CRC of that."""
    head = packets.HEADER + bytes((servo, size + 4 & 0xFF, size + 4 >> 8, Instruction.STATUS))
    return head, crc16(head)


@lru_cache(maxsize=CACHED)
def _sync_read(servos: tuple[int, ...], address: int, size: int) -> Question:
    return _question(packets.sync_read(servos, address, size), servos, size)


@lru_cache(maxsize=CACHED)
def _fast_sync_read(servos: tuple[int, ...], address: int, size: int) -> Question:
    expected = FAST_OVERHEAD + len(servos) * (size + SLOT_OVERHEAD)
    return Question(packets.fast_sync_read(servos, address, size), servos, size, expected)


def _question(request: bytes, servos: tuple[int, ...], size: int) -> Question:
    return Question(request, servos, size, len(servos) * (size + OVERHEAD))


def _search(raw: bytes, servos: Iterable[int], size: int) -> dict[int, Reply]:
    """Whole answers of the right id and size among whatever else was read. When one id answers twice and differently
    (two servos with the same id, a second master) neither answer is believed."""
    found: dict[int, set[Reply]] = {servo: set() for servo in servos}
    for frame in packets.split_frames(raw, final=True)[0]:
        if frame.code != Instruction.STATUS or frame.id not in found or not frame.data:
            continue
        if len(frame.data) == size + 1:
            found[frame.id].add(Reply(frame.data[1:], frame.data[0]))
    return {servo: answers.pop() for servo, answers in found.items() if len(answers) == 1}


DYNAMIXEL = Family(
    name="Dynamixel X",
    protocol=Dynamixel,
    registers=XSERIES,
    models={number: model.name for number, model in MODELS.items()},
    baud_rates=BAUD_RATES,
    decode_errors=decode_errors,
    offset_limit=OFFSET_LIMIT,
    offset_adds=True,
    drive_mode_in_servo=True,
    watchdog=Watchdog("bus_watchdog", round(WATCHDOG_S / WATCHDOG_UNIT_S), WATCHDOG_S, WATCHDOG_TRIPPED),
    details=Details("hardware_error", ALERT, decode_hardware),
)
