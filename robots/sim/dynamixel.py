"""Virtual Dynamixel X servos as registers, and a wire with any number of them. No port, no physics.

A world moves them as it moves the Feetech ones: it reads `goal_ticks` (None when released) and sets `present_ticks`,
both in the frame the servo was built with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import ClassVar

from hotpolicy.robots.calibration import Calibration
from hotpolicy.robots.servo import dynamixel_packets as packets
from hotpolicy.robots.servo.dynamixel_packets import BROADCAST, Frame, Instruction
from hotpolicy.robots.servo.dynamixel_registers import (
    ALERT,
    BAUD_RATES,
    GOALS,
    MODELS,
    NO_SHADOW,
    OFFSET_LIMIT,
    REVERSED,
    SRAM_START,
    WATCHDOG_TRIPPED,
    WATCHDOG_UNIT_S,
    XSERIES,
    Mode,
)
from hotpolicy.robots.servo.registers import RESOLUTION, Register
from hotpolicy.robots.servo.tables import ArmTable
from hotpolicy.robots.sim.faults import DAMAGE, Kind
from hotpolicy.robots.sim.wire import VirtualWire
from hotpolicy.runtime.clock import now

MEMORY = 256  # bytes of control table
OVERLOAD = 1 << 5  # bit of hardware_error
CLEAR_TURNS = b"\x01\x44\x58\x4c\x22"  # what CLEAR must carry
RANGE, LENGTH, LIMIT, ACCESS, FAILED, UNKNOWN = 4, 5, 6, 7, 1, 2  # error numbers
ID, SHADOW, WATCHDOG, ALARM = (XSERIES[name].address for name in ("id", "shadow_id", "bus_watchdog", "hardware_error"))
TRIPPED = WATCHDOG_TRIPPED & 0xFF  # as it lies in memory
FAST_HEAD = packets.PREFIX + 1  # bytes of a shared answer before its first slot
CHECKED = {
    "id", "baud_rate", "mode", "torque", "position_offset", "min_position", "max_position", "bus_watchdog", *GOALS,
}  # registers that do not take every value, or not always  # fmt: skip
HAS_EFFECT = ("torque", "mode", "position_offset", "drive_mode")  # registers that do something once they are written
POSITION_MODES = (Mode.POSITION, Mode.EXTENDED, Mode.CURRENT_POSITION)


class VirtualDynamixel:
    """The memory of one servo and what writing to it does.

    `goal_on_torque`: as for VirtualServo, what torque on makes of a goal from before. `fast`: its firmware knows fast
    sync reads. A servo whose shutdown has tripped refuses torque until it is rebooted.
    """

    def __init__(
        self,
        id: int,
        *,
        model: int = 1060,
        offset: int = 0,
        low: int = 0,
        high: int = 4095,
        drive_mode: int = 0,
        mode: int = Mode.POSITION,
        goal_on_torque: str = "stale",
        fast: bool = True,
        clock: Callable[[], float] = now,
    ):
        self.goal_on_torque = goal_on_torque
        self.fast = fast
        self.clock = clock
        self.model = MODELS[model]
        self.memory = bytearray(MEMORY)
        self._reset({"model": model})
        built = {"id": id, "position_offset": offset, "min_position": low, "max_position": high}
        for name, value in {**built, "drive_mode": drive_mode, "mode": mode}.items():
            self.poke(name, value)
        self._saved = self.memory[:SRAM_START]  # the EEPROM: what a power cycle brings back
        self._frame = (self._sign, offset)  # how the world counts
        self._turned = 0  # ticks by which the servo's own count differs from the world's: whole turns
        self._pending: bytes | None = None  # a REG_WRITE that waits for ACTION
        self._heard_at = clock()
        self._stopped_at = 0.0  # where the watchdog stopped it
        self.present_ticks = float((low + high) // 2)
        self.poke("goal_position", self.peek("present_position"))

    @property
    def id(self) -> int:
        return self.memory[ID]

    @property
    def baud(self) -> int:
        return BAUD_RATES.get(self.peek("baud_rate"), 0)  # 0: deaf at every rate

    @property
    def return_delay_s(self) -> float:
        return self.peek("return_delay") * 2e-6

    def peek(self, name: str) -> int:
        register = XSERIES[name]
        raw = self.memory[register.address : register.address + register.size]
        return int.from_bytes(raw, "little", signed=register.signed)

    def poke(self, name: str, value: int) -> None:
        """Change a register from inside the servo: read-only ones too, and without side effects."""
        register = XSERIES[name]
        self.memory[register.address : register.address + register.size] = register.encode(value)

    # What the world sees ----------------------------------------------------------------------------------------------

    @property
    def torque(self) -> bool:
        return self.memory[XSERIES["torque"].address] == 1

    @property
    def goal_ticks(self) -> float | None:
        """Where the servo drives to, or None when it is released. After the watchdog it stays where it stopped."""
        if not self.torque:
            return None
        self._watch(self.clock())
        if self.tripped:
            return self._stopped_at
        if self.peek("mode") not in POSITION_MODES:
            return self._present
        actual = (self.peek("goal_position") - self.peek("position_offset")) * self._sign - self._turned
        sign, offset = self._frame
        return float(actual * sign + offset)

    @property
    def present_ticks(self) -> float:
        return self._present

    @present_ticks.setter
    def present_ticks(self, ticks: float) -> None:
        self._present = float(ticks)
        self._show_position()

    @property
    def errors(self) -> int:
        """The bits of hardware_error; any of them sets the alert bit of every answer."""
        return self.peek("hardware_error")

    @errors.setter
    def errors(self, bits: int) -> None:
        self.poke("hardware_error", bits)
        if bits & self.peek("shutdown"):
            self.poke("torque", 0)

    @property
    def tripped(self) -> bool:
        """Whether the bus watchdog has stopped it."""
        return self.memory[WATCHDOG] == TRIPPED

    def overload(self) -> None:
        """Its protection trips now: torque off, until it is rebooted."""
        self.errors |= OVERLOAD

    def advance(self, max_ticks: float) -> None:
        """Physics for those who have no world: go towards the goal by at most `max_ticks`."""
        goal = self.goal_ticks
        if goal is not None:
            self.present_ticks += min(max(goal - self.present_ticks, -max_ticks), max_ticks)

    def power_cycle(self) -> None:
        """EEPROM as it was, everything else as at switch-on: torque off, no fault, turns forgotten."""
        self._reset({"model": int.from_bytes(self._saved[:2], "little")})
        self.memory[:SRAM_START] = self._saved
        self._pending = None
        self._forget_turns()
        self.poke("goal_position", self.peek("present_position"))

    def _reset(self, built: Mapping[str, int]) -> None:
        """Every register as the factory left it, and those in `built`."""
        model = self.model
        own = {
            "position_p_gain": model.position_p_gain,
            "shutdown": model.shutdown,
            "current_limit": model.current_limit or 0,
            "goal_current": model.current_limit or 0,
        }
        for register in XSERIES.values():
            self.poke(register.name, register.default)
        for name, value in {**own, **built}.items():
            self.poke(name, value)

    @property
    def _sign(self) -> int:
        return -1 if self.peek("drive_mode") & REVERSED else 1

    @property
    def _actual(self) -> int:
        """The angle of the output in ticks, as the servo counts turns."""
        sign, offset = self._frame
        return round((self._present - offset) * sign) + self._turned

    def _forget_turns(self) -> None:
        self._turned += self._actual % RESOLUTION - self._actual
        self._show_position()

    def _show_position(self) -> None:
        self.poke("present_position", self._actual * self._sign + self.peek("position_offset"))

    def _watch(self, moment: float) -> None:
        """The bus watchdog: it counts while torque is on."""
        units = self.memory[WATCHDOG]
        if 0 < units < 0x80 and self.torque and moment - self._heard_at > units * WATCHDOG_UNIT_S:
            self.poke("bus_watchdog", WATCHDOG_TRIPPED)
            self._stopped_at = self._present

    # What the bus sees ------------------------------------------------------------------------------------------------

    def hear(self, moment: float) -> None:
        """A question passes on the bus, whoever it is for."""
        if self.memory[WATCHDOG]:
            self._watch(moment)
        self._heard_at = moment

    def answer(self, frame: Frame) -> bytes | None:
        """Do what a request to this servo asks; its answer, or None when it gives none."""
        handler = self._HANDLERS.get(frame.code)
        error, data = (UNKNOWN, b"") if handler is None else handler(self, frame.data)
        quiet = frame.id == BROADCAST and frame.code != Instruction.PING
        if quiet or frame.id not in (self.id, BROADCAST) or self.peek("status_level") < _LEVELS.get(frame.code, 2):
            return None
        return packets.status(self.id, error | self.alert, data)

    @property
    def alert(self) -> int:
        return ALERT if self.memory[ALARM] else 0

    def window(self, address: int, size: int) -> bytes:
        """What a read of these addresses gives."""
        if address <= XSERIES["moving"].address < address + size:
            goal = self.goal_ticks
            self.poke("moving", int(goal is not None and abs(goal - self._present) > 2))
        return bytes(self.memory[address : address + size]).ljust(size, b"\0")

    def write(self, data: bytes) -> int:
        """Store `data` (address, then bytes) with the effects of the real servo; the error number, 0 when stored."""
        if len(data) < 3:
            return LENGTH
        return self.store(int.from_bytes(data[:2], "little"), data[2:])

    def store(self, address: int, values: bytes) -> int:
        """The same with the address taken out."""
        end = address + len(values)
        if end > MEMORY:
            return LENGTH
        touched = _touched(address, end)
        for register in touched:
            if error := self._refusal(register, self._would_hold(register, address, values)):
                return error
        was = [(register.name, self.peek(register.name)) for register in touched if register.name in HAS_EFFECT]
        self.memory[address:end] = values
        if address < SRAM_START:
            self._saved = self.memory[:SRAM_START]
        for name, old in was:
            self._after_write(name, old)
        return 0

    def _would_hold(self, register: Register, address: int, values: bytes) -> int:
        """What a register will hold once `values` lie at `address`; a write may end in the middle of one."""
        at = register.address - address
        if at >= 0 and at + register.size <= len(values):
            raw = values[at : at + register.size]
        else:
            after = self.memory[:address] + values + self.memory[address + len(values) :]
            raw = bytes(after[register.address : register.address + register.size])
        return int.from_bytes(raw, "little", signed=register.signed)

    def _refusal(self, register: Register, value: int) -> int:
        """The error number with which the servo refuses `value`, or 0."""
        if register.read_only or (register.address < SRAM_START and self.torque):
            return ACCESS
        if register.name not in CHECKED:
            return 0
        if self.tripped and register.name in GOALS:
            return RANGE
        match register.name:
            case "id":
                return 0 if value <= packets.MAX_ID else RANGE
            case "baud_rate":
                return 0 if value in BAUD_RATES else RANGE
            case "mode":
                return 0 if value in self.model.modes else RANGE
            case "torque":
                return FAILED if value == 1 and self.errors & self.peek("shutdown") else 0 if value < 2 else RANGE
            case "position_offset":
                return 0 if abs(value) <= OFFSET_LIMIT else RANGE
            case "min_position" | "max_position":
                return 0 if value < RESOLUTION else RANGE
            case "goal_position" if self.memory[XSERIES["mode"].address] == Mode.POSITION:
                return 0 if self.peek("min_position") <= value <= self.peek("max_position") else LIMIT
            case "goal_current":
                return 0 if abs(value) <= self.peek("current_limit") else LIMIT
            case "bus_watchdog":
                return 0 if value >= 0 else RANGE
        return 0

    def _after_write(self, name: str, old: int) -> None:
        if name == "torque" and self.torque and not old:
            self._heard_at = self.clock()
            if self.goal_on_torque == "present":
                self.poke("goal_position", self.peek("present_position"))
        elif name == "mode" and self.peek("mode") != old:  # each mode has gains of its own
            self.poke("position_p_gain", self.model.position_p_gain)
            for gain in ("position_i_gain", "position_d_gain"):
                self.poke(gain, 0)
            self.poke("goal_current", self.peek("current_limit"))
        if name in ("position_offset", "drive_mode"):
            self._show_position()

    def _ping(self, data: bytes) -> tuple[int, bytes]:
        return 0, bytes(self.memory[0:2]) + bytes((self.peek("firmware"),))

    def _read(self, data: bytes) -> tuple[int, bytes]:
        if len(data) != 4:
            return LENGTH, b""
        return 0, self.window(int.from_bytes(data[:2], "little"), int.from_bytes(data[2:], "little"))

    def _write(self, data: bytes) -> tuple[int, bytes]:
        return self.write(data), b""

    def _reg_write(self, data: bytes) -> tuple[int, bytes]:
        self._pending = data
        return 0, b""

    def _action(self, data: bytes) -> tuple[int, bytes]:
        if self._pending is None:
            return FAILED, b""
        error = self.write(self._pending)
        self._pending = None
        return error, b""

    def _reboot(self, data: bytes) -> tuple[int, bytes]:
        self.power_cycle()
        return 0, b""

    def _factory_reset(self, data: bytes) -> tuple[int, bytes]:
        """0xFF: everything; 1: all but the id; 2: all but id and baud rate."""
        if self.torque:
            return ACCESS, b""
        kept = {b"\x01": ("id",), b"\x02": ("id", "baud_rate")}.get(data, ())
        self._reset({name: self.peek(name) for name in ("model", *kept)})
        self._saved = self.memory[:SRAM_START]
        self._forget_turns()
        return 0, b""

    def _clear(self, data: bytes) -> tuple[int, bytes]:
        if data != CLEAR_TURNS:
            return RANGE, b""
        if self.torque:
            return ACCESS, b""
        self._forget_turns()
        return 0, b""

    _HANDLERS: ClassVar[dict[int, Callable[[VirtualDynamixel, bytes], tuple[int, bytes]]]] = {
        Instruction.PING: _ping,
        Instruction.READ: _read,
        Instruction.WRITE: _write,
        Instruction.REG_WRITE: _reg_write,
        Instruction.ACTION: _action,
        Instruction.REBOOT: _reboot,
        Instruction.FACTORY_RESET: _factory_reset,
        Instruction.CLEAR: _clear,
    }


@lru_cache(maxsize=256)
def _touched(start: int, end: int) -> tuple[Register, ...]:
    """The registers of which a byte lies at these addresses."""
    return tuple(r for r in XSERIES.values() if r.address < end and start < r.address + r.size)


_LEVELS: dict[int, int] = {Instruction.PING: 0, Instruction.READ: 1}  # least status_level that answers; else 2


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
        crc = packets.crc16(head)
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
