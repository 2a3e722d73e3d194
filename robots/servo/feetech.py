"""Feetech's STS/SMS servos on a bus: their questions and answers, and what an arm must know of the family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from hotpolicy.robots.servo import packets
from hotpolicy.robots.servo.family import Family
from hotpolicy.robots.servo.packets import BROADCAST, MAX_ERROR, OVERHEAD, exact_answers, split_frames
from hotpolicy.robots.servo.protocol import Question, Reply
from hotpolicy.robots.servo.registers import BAUD_RATES, MODELS, STS3215, decode_errors


class Feetech:
    """Implements protocol.Protocol. Has no state."""

    name = "Feetech"
    model = (STS3215["model"].address, STS3215["model"].size)
    scan_s = 0.05

    def ping(self, servo: int) -> Question:
        return _question(packets.ping(servo), (servo,), 0)

    def ping_all(self) -> Question:
        return Question(packets.ping(BROADCAST), expected=OVERHEAD * BROADCAST)

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
        return _sync_read(servos, address, size)  # there is only this form

    def sort(self, question: Question, raw: bytes) -> tuple[dict[int, Reply], int]:
        _, servos, size, _ = question
        answers = exact_answers(raw, servos, size)
        if answers is None:
            answers = _search(raw, servos, size)
        missing = len(servos) - len(answers)
        return answers, missing and max(1, missing * (size + OVERHEAD) - len(split_frames(raw)[1]))

    def found(self, raw: bytes) -> set[int]:
        return {frame.id for frame in split_frames(raw, final=True)[0] if frame.id != BROADCAST}


@lru_cache(maxsize=64)  # a control loop asks the same each cycle
def _sync_read(servos: tuple[int, ...], address: int, size: int) -> Question:
    return _question(packets.sync_read(servos, address, size), servos, size)


def _question(request: bytes, servos: tuple[int, ...], size: int) -> Question:
    return Question(request, servos, size, len(servos) * (size + OVERHEAD))


def _search(raw: bytes, servos: Iterable[int], size: int) -> dict[int, Reply]:
    """Whole answers of the right id and size among whatever else was read. When one id answers twice and differently
    (two servos with the same id, a second master) neither answer is believed."""
    found: dict[int, set[Reply]] = {servo: set() for servo in servos}
    for frame in split_frames(raw, final=True)[0]:
        if frame.id in found and len(frame.data) == size and frame.code <= MAX_ERROR:
            found[frame.id].add(Reply(frame.data, frame.code))
    return {servo: answers.pop() for servo, answers in found.items() if len(answers) == 1}


FEETECH = Family(
    name="Feetech STS",
    protocol=Feetech,
    registers=STS3215,
    models=MODELS,
    baud_rates=BAUD_RATES,
    decode_errors=decode_errors,
    offset_limit=2047,
    unlock={"lock": 0},
    lock={"lock": 1},
)
