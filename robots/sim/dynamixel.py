"""A wire with any number of virtual Dynamixel X servos on it. No port, no physics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

from hotpolicy.robots.calibration import Calibration
from hotpolicy.robots.servo import dynamixel_packets as packets
from hotpolicy.robots.servo.crc import crc16
from hotpolicy.robots.servo.dynamixel_packets import BROADCAST, Frame, Instruction
from hotpolicy.robots.servo.dynamixel_registers import NO_SHADOW, XSERIES
from hotpolicy.robots.servo.tables import ArmTable
from hotpolicy.robots.sim.faults import DAMAGE, Kind
from hotpolicy.robots.sim.wire import VirtualWire
from hotpolicy.robots.sim.xseries import VirtualDynamixel
from hotpolicy.runtime.clock import now

__all__ = ["VirtualDynamixel", "VirtualDynamixels"]
SHADOW = XSERIES["shadow_id"].address
FAST_HEAD = packets.PREFIX + 1  # bytes of a shared answer before its first slot


def _foreign(answer: bytes) -> bytes:
    """The same answer from a servo whose id is one higher. Of a shared answer only the slot's id changes."""
    frames, _ = packets.split_frames(answer)
    if frames:
        return packets.encode(frames[0]._replace(id=frames[0].id + 1))
    at = FAST_HEAD + 1 if answer.startswith(packets.HEADER) else 1
    return answer[:at] + bytes((answer[at] + 1,)) + answer[at + 1 :]


class VirtualDynamixels(VirtualWire[Frame, VirtualDynamixel]):
    """Dynamixel servos on one wire."""

    damage: ClassVar[Mapping[Kind, Callable[[bytes], bytes]]] = {**DAMAGE, "foreign": _foreign}

    @classmethod
    def from_table(
        cls, table: ArmTable, calibration: Calibration, clock: Callable[[], float] = now
    ) -> VirtualDynamixels:
        """The servos of an arm, calibrated as the file says, each joint in the middle of its range.
        Otherwise as the factory made them."""
        servos = []
        for row in table.servos:
            joint = calibration[row.name]
            servos.append(
                VirtualDynamixel(
                    row.id,
                    model=row.model,
                    offset=joint.homing_offset,
                    low=joint.range_min,
                    high=joint.range_max,
                    drive_mode=joint.drive_mode,
                    clock=clock,
                )
            )
        return cls(servos, clock)

    def split(self, buffer: bytes) -> tuple[Sequence[Frame], bytes]:
        return packets.split_frames(buffer)

    def encode(self, frame: Frame) -> bytes:
        return packets.encode(frame)

    def answers(self, frame: Frame) -> Iterable[tuple[VirtualDynamixel, bytes | None]]:
        if frame.code == Instruction.STATUS:
            return
        moment = self._clock()
        deaf = [fault for fault in self.faults if fault.kind == "silent"]
        for servo in self.servos:
            if not deaf or not any(fault.concerns(servo.id) for fault in deaf):
                servo.hear(moment)
        if frame.code == Instruction.SYNC_WRITE:
            self._sync_write(frame.data)
        elif frame.code == Instruction.SYNC_READ:
            yield from self._sync_read(frame.data)
        elif frame.code == Instruction.FAST_SYNC_READ:
            yield from self._fast_sync_read(frame.data)
        else:
            for servo in sorted(self.servos, key=lambda servo: servo.id):
                if (frame.id == BROADCAST or frame.id in _obeys(servo)) and self.hears(servo):
                    yield servo, servo.answer(frame)

    def _sync_read(self, data: bytes) -> Iterable[tuple[VirtualDynamixel, bytes | None]]:
        present = {servo.id: servo for servo in self.servos}
        for id in data[4:]:
            servo = present.get(id)
            if servo is not None and self.hears(servo):
                yield servo, servo.answer(Frame(id, Instruction.READ, data[:4]))
            elif self.active("stop_at_gap", id):
                return

    def _fast_sync_read(self, data: bytes) -> Iterable[tuple[VirtualDynamixel, bytes | None]]:
        """One answer in which each servo waits for the one before it: the first gap ends it."""
        address, size, asked = int.from_bytes(data[:2], "little"), int.from_bytes(data[2:4], "little"), data[4:]
        present = {servo.id: servo for servo in self.servos}
        head = packets.fast_head(len(asked), size)
        crc = crc16(head)
        for id in asked:
            servo = present.get(id)
            if servo is None or not servo.fast or not self.hears(servo):
                return
            slot, crc = packets.fast_slot(crc, id, servo.alert, servo.window(address, size))
            yield servo, head + slot
            head = b""

    def _sync_write(self, data: bytes) -> None:
        step = int.from_bytes(data[2:4], "little") + 1
        if len(data) < 4 or (len(data) - 4) % step:
            return
        slots = {data[at]: data[at + 1 : at + step] for at in range(4, len(data), step)}
        address = int.from_bytes(data[:2], "little")
        for servo in self.servos:
            concerning = [slots[id] for id in _obeys(servo) if id in slots]
            if concerning and self.hears(servo):
                for values in concerning:
                    servo.store(address, values)


def _obeys(servo: VirtualDynamixel) -> tuple[int, ...]:
    """The ids whose writes concern it: its own, and the one it shadows."""
    shadow = servo.memory[SHADOW]
    return (servo.id,) if shadow in (NO_SHADOW, servo.id) else (servo.id, shadow)
