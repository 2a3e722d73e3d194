"""A virtual STS3215 servo: its body, and what questions on the bus make it do and answer. No port, no physics."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ClassVar

from hotpolicy.robots.servo.packets import BROADCAST, Frame, Instruction, status
from hotpolicy.robots.servo.registers import SRAM_START, STS3215
from hotpolicy.robots.sim.sts3215_body import (
    MEMORY,
    OVERCURRENT,
    OVERLOAD,
    STATUS_AT,
    TORQUE_AT,
    TORQUE_ON,
    Sts3215Body,
)

READ_ONLY = frozenset(
    address for r in STS3215.values() if r.read_only for address in range(r.address, r.address + r.size)
)
GOAL, ECHO, OFFSET = STS3215["goal_position"], STS3215["goal_echo"], STS3215["position_offset"]
MOVING_AT, LOCK_AT = STS3215["moving"].address, STS3215["lock"].address
MIDDLE = 2048  # ticks
SET_MIDDLE = 128


class VirtualServo(Sts3215Body):
    """One servo on the bus."""

    def answer(self, frame: Frame) -> bytes | None:
        """Do what a request to this servo asks; its answer, or None when it gives none."""
        handler = self._HANDLERS.get(frame.code)
        if handler is None:
            return None
        data = handler(self, frame.data)
        if data is None:
            return None
        quiet = frame.id == BROADCAST and frame.code != Instruction.PING
        if quiet or (frame.code not in (Instruction.PING, Instruction.READ) and not self.peek("status_level")):
            return None
        return status(self.id, self.errors, data)

    def read(self, data: bytes) -> bytes | None:
        """Memory named by `data` (address, size); addresses beyond the table read as zero."""
        if len(data) != 2:
            return None
        address, size = data
        if address <= MOVING_AT < address + size:
            goal = self.goal_ticks
            self.memory[MOVING_AT] = goal is not None and abs(self._end_ticks() - self._present) > 2
        return bytes(self.memory[address : address + size]).ljust(size, b"\0")

    def window(self, id: int, data: bytes) -> bytes | None:
        """The answer to its part in a sync read."""
        values = self.read(data)
        return None if values is None else status(id, self.memory[STATUS_AT], values)

    def write(self, data: bytes) -> bytes | None:
        """Store `data` (address, then bytes) where it may be written, with the effects of the real servo."""
        if len(data) < 2:
            return None
        self.store(data[0], data[1:])
        return b""

    def store(self, address: int, values: bytes) -> None:
        """The same with the address taken out."""
        was_on = self.memory[TORQUE_AT] == TORQUE_ON
        writable, touched, whole = _reach(address, len(values))
        if whole:
            self.memory[address : address + len(values)] = values
        else:
            for at in writable:
                self.memory[at] = values[at - address]
                if at < SRAM_START and not self.memory[LOCK_AT]:
                    self._saved[at] = values[at - address]
        if touched:
            self._after_write(touched, was_on)

    def _after_write(self, touched: frozenset[str], was_on: bool) -> None:
        if "torque" in touched:
            if self.peek("torque") == SET_MIDDLE:
                self._set_middle()
                self.poke("torque", int(was_on))
            elif self.torque and not was_on and self.goal_on_torque == "present":
                self.poke("goal_position", self.peek("present_position"))
            elif not self.torque:
                self._tripped, self._profile = False, None
                self.motor.strained_s = self.motor.hot_wire_s = 0.0
                self.errors &= ~(OVERLOAD | OVERCURRENT)
        if "goal_position" in touched:
            self.memory[TORQUE_AT] = TORQUE_ON  # the real servo does this, torque off or not
            self.memory[ECHO.address : ECHO.address + 2] = self.memory[GOAL.address : GOAL.address + 2]
        if "position_offset" in touched or "torque" in touched:
            self._show_position()

    def _set_middle(self) -> None:
        """Choose the offset that makes the present position 2048; the register holds +-2047, as in the real one."""
        offset = round(self._present) + self._built_offset - MIDDLE
        self.poke("position_offset", min(max(offset, -2047), 2047))
        span = slice(OFFSET.address, OFFSET.address + 2)
        self._saved[span] = self.memory[span]

    def _ping(self, data: bytes) -> bytes | None:
        return b""

    def _reg_write(self, data: bytes) -> bytes | None:
        if len(data) < 2:
            return None
        self._pending = (data[0], data[1:])
        return b""

    def _action(self, data: bytes) -> bytes | None:
        if self._pending is not None:
            address, values = self._pending
            self._pending = None
            self.write(bytes((address,)) + values)
        return b""

    def _reboot(self, data: bytes) -> bytes | None:
        self.power_cycle()
        return None

    _HANDLERS: ClassVar[dict[int, Callable[[VirtualServo, bytes], bytes | None]]] = {
        Instruction.PING: _ping,
        Instruction.READ: read,
        Instruction.WRITE: write,
        Instruction.REG_WRITE: _reg_write,
        Instruction.ACTION: _action,
        Instruction.REBOOT: _reboot,
    }


EFFECTIVE = ("torque", "goal_position", "position_offset")  # registers whose writing does more than store


@functools.lru_cache(maxsize=256)
def _reach(address: int, size: int) -> tuple[tuple[int, ...], frozenset[str], bool]:
    """Of a write: the addresses that may be written, which of EFFECTIVE it touches, and whether it is plain: all of it
    may be written, and nothing is kept past a power cycle."""
    span = range(address, address + size)
    writable = tuple(at for at in span if at < MEMORY and at not in READ_ONLY)
    touched = (name for name in EFFECTIVE if any(STS3215[name].address + i in span for i in range(STS3215[name].size)))
    return writable, frozenset(touched), len(writable) == size and address >= SRAM_START
