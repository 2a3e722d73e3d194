"""A wire with any number of virtual STS3215 servos on it. No port, no physics."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

from hotpolicy.robots.calibration import Calibration
from hotpolicy.robots.servo.packets import BROADCAST, Frame, Instruction, encode, split_frames
from hotpolicy.robots.sim.faults import DAMAGE, Kind
from hotpolicy.robots.sim.sts3215 import VirtualServo
from hotpolicy.robots.sim.sts3215_body import OVERCURRENT, OVERHEAT, OVERLOAD, TOP_SPEED, VOLTAGE
from hotpolicy.robots.sim.wire import VirtualWire
from hotpolicy.runtime.clock import now

__all__ = ["OVERCURRENT", "OVERHEAT", "OVERLOAD", "TOP_SPEED", "VOLTAGE", "VirtualBus", "VirtualServo"]


def _foreign(answer: bytes) -> bytes:
    """The same answer from a servo whose id is one higher; the checksum falls by one to match."""
    return answer[:2] + bytes((answer[2] + 1,)) + answer[3:-1] + bytes(((answer[-1] - 1) & 0xFF,))


class VirtualBus(VirtualWire[Frame, VirtualServo]):
    """STS3215 servos on one wire."""

    damage: ClassVar[Mapping[Kind, Callable[[bytes], bytes]]] = {**DAMAGE, "foreign": _foreign}

    @classmethod
    def from_calibration(cls, calibration: Calibration, clock: Callable[[], float] = now) -> VirtualBus:
        """An arm calibrated as the file says, each joint in the middle of its range."""
        joints = calibration.values()
        return cls(
            (VirtualServo(j.id, offset=j.homing_offset, low=j.range_min, high=j.range_max) for j in joints), clock
        )

    def split(self, buffer: bytes) -> tuple[Sequence[Frame], bytes]:
        return split_frames(buffer)

    def encode(self, frame: Frame) -> bytes:
        return encode(frame)

    def answers(self, frame: Frame) -> Iterable[tuple[VirtualServo, bytes | None]]:
        if frame.code == Instruction.SYNC_READ:
            yield from self._sync_read(frame.data)
        elif frame.code == Instruction.SYNC_WRITE:
            self._sync_write(frame.data)
        elif frame.id == BROADCAST:
            for servo in self.servos:
                if self.hears(servo):
                    yield servo, servo.answer(frame)
        else:
            yield from self._at_once([(servo, servo.answer(frame)) for servo in self._listening(frame.id)])

    def _sync_read(self, data: bytes) -> Iterable[tuple[VirtualServo, bytes | None]]:
        window, asked = data[:2], data[2:]
        present: dict[int, list[VirtualServo]] = {}
        for servo in self.servos:
            present.setdefault(servo.id, []).append(servo)
        for id in asked:
            listening = [servo for servo in present.get(id, ()) if self.hears(servo)]
            if not listening and self.active("stop_at_gap", id):
                return
            answers = [(servo, servo.window(id, window)) for servo in listening]
            yield from answers if len(answers) < 2 else self._at_once(answers)

    def _listening(self, id: int) -> list[VirtualServo]:
        return [servo for servo in self.servos if servo.id == id and self.hears(servo)]

    def _at_once(self, answers: list[tuple[VirtualServo, bytes | None]]) -> list[tuple[VirtualServo, bytes | None]]:
        """Servos with the same id answer at the same time: where one pulls the wire low, it is low."""
        if len(answers) < 2:
            return answers
        bytes_at = itertools.zip_longest(*(answer or b"" for _, answer in answers), fillvalue=0xFF)
        return [(answers[0][0], bytes(functools.reduce(operator.and_, row) for row in bytes_at))]

    def _sync_write(self, data: bytes) -> None:
        if len(data) < 2 or (len(data) - 2) % (data[1] + 1):
            return
        address, step = data[0], data[1] + 1
        slots = {data[at]: data[at + 1 : at + step] for at in range(2, len(data), step)}
        for servo in self.servos:
            values = slots.get(servo.id)
            if values and self.hears(servo):
                servo.store(address, values)
