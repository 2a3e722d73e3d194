"""A virtual Dynamixel X servo: its body, and what questions on the bus make it do and answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import ClassVar

from hotpolicy.robots.servo import dynamixel_packets as packets
from hotpolicy.robots.servo.dynamixel_packets import BROADCAST, Frame, Instruction
from hotpolicy.robots.servo.dynamixel_registers import (
    ALERT,
    BAUD_RATES,
    GOALS,
    OFFSET_LIMIT,
    SRAM_START,
    XSERIES,
    Mode,
)
from hotpolicy.robots.servo.registers import RESOLUTION, Register
from hotpolicy.robots.sim.xseries_body import MEMORY, WATCHDOG, XSeriesBody

CLEAR_TURNS = b"\x01\x44\x58\x4c\x22"  # what CLEAR must carry
RANGE, LENGTH, LIMIT, ACCESS, FAILED, UNKNOWN = 4, 5, 6, 7, 1, 2  # error numbers
ALARM = XSERIES["hardware_error"].address
CHECKED = {
    "id", "baud_rate", "mode", "torque", "position_offset", "min_position", "max_position", "bus_watchdog", *GOALS,
}  # registers that do not take every value, or not always  # fmt: skip
HAS_EFFECT = ("torque", "mode", "position_offset", "drive_mode")  # registers that do something once they are written


class VirtualDynamixel(XSeriesBody):
    """One servo on the bus."""

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
