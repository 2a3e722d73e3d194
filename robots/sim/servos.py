"""Virtual STS3215 servos as registers, and a wire with any number of them. No port, no physics.

A world moves the servos: each step it reads `servo.goal_ticks` (None when released) and sets `servo.present_ticks`.
Both are ticks in the frame the servo was built with; someone who rewrites the offset register over the wire sees the
registers move, and the world does not notice, as on a real arm.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

from hotpolicy.robots.calibration import Calibration
from hotpolicy.robots.servo.packets import BROADCAST, Frame, Instruction, encode, split_frames, status
from hotpolicy.robots.servo.registers import BAUD_RATES, SRAM_START, STS3215
from hotpolicy.robots.sim.faults import DAMAGE, Kind
from hotpolicy.robots.sim.motor import Motor
from hotpolicy.robots.sim.wire import VirtualWire
from hotpolicy.runtime.clock import now

MEMORY = 128  # bytes of control table
READ_ONLY = frozenset(
    address for r in STS3215.values() if r.read_only for address in range(r.address, r.address + r.size)
)
TORQUE, GOAL, ECHO = STS3215["torque"], STS3215["goal_position"], STS3215["goal_echo"]
STATUS, MOVING, LOCK = STS3215["status"], STS3215["moving"], STS3215["lock"]
ID, TORQUE_AT, STATUS_AT, MOVING_AT = STS3215["id"].address, TORQUE.address, STATUS.address, MOVING.address
MIDDLE = 2048  # ticks
TORQUE_ON = 1
SET_MIDDLE = 128
VOLTAGE, OVERHEAT, OVERCURRENT, OVERLOAD = 1 << 0, 1 << 2, 1 << 3, 1 << 5  # error bits
TOP_SPEED = 3400.0  # ticks/s without load, 50 turns a minute
CURRENT_UNIT = 6.5e-3  # A
ACCELERATION_UNIT = 100.0  # ticks/s^2
NO_RAMP = 254  # the quickest ramp, which no motor with an arm on it can follow anyway


class VirtualServo:
    """The memory of one servo, and what time and writing to it do.

    `goal_on_torque="stale"`: torque on drives to whatever the goal register holds. `"present"`: the firmware first
    takes the present position as goal. Both have been reported; a driver must be safe with either.
    """

    def __init__(
        self,
        id: int,
        *,
        offset: int = 0,
        low: int = 0,
        high: int = 4095,
        model: int = 777,
        goal_on_torque: str = "stale",
    ):
        self.goal_on_torque = goal_on_torque
        self.motor = Motor()
        self.held = False  # a hand keeps the joint where it is
        self.memory = bytearray(MEMORY)
        for register in STS3215.values():
            self.poke(register.name, register.default)
        built = {"id": id, "model": model, "position_offset": offset, "min_position": low, "max_position": high}
        for name, value in built.items():
            self.poke(name, value)
        self._saved = self.memory[:SRAM_START]  # the EEPROM: what a power cycle brings back
        self._built_offset = offset
        self._pending: tuple[int, bytes] | None = None  # a REG_WRITE that waits for ACTION
        self._tripped = False  # overload protection: reduced torque until it is switched off
        self._profile: tuple[float, float] | None = None  # (ticks, ticks/s) on the way to a goal with speed or ramp
        self.present_ticks = self._was = float((low + high) // 2)  # `_was`: when time last passed
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
        register = STS3215[name]
        return register.decode(bytes(self.memory[register.address : register.address + register.size]))

    def poke(self, name: str, value: int) -> None:
        """Change a register from inside the servo: read-only ones too, and without side effects."""
        register = STS3215[name]
        self.memory[register.address : register.address + register.size] = register.encode(value)

    # What the world sees ------------------------------------------------------------------------------------------

    @property
    def torque(self) -> bool:
        return self.memory[TORQUE_AT] == TORQUE_ON

    @property
    def goal_ticks(self) -> float | None:
        """Where the servo drives to now, or None when it is released. The limits clamp it, as in the real one, while
        the goal register keeps what was written. On the way with a speed or a ramp it is where the servo should be."""
        if not self.torque:
            return None
        return self._profile[0] if self._profile is not None else self._end_ticks()

    def _end_ticks(self) -> float:
        low, high = self.peek("min_position"), self.peek("max_position")
        goal = self.peek("goal_position")
        if low or high:  # both 0: no limits
            goal = min(max(goal, low), high)
        return float(goal + self.peek("position_offset") - self._built_offset)

    @property
    def strength(self) -> float:
        """Share of its torque that the servo may use, 0..1: the limits, and the protection once it has tripped."""
        allowed = min(self.peek("torque_limit"), self.peek("max_torque")) / 1000
        return min(allowed, self.peek("protective_torque") / 100) if self._tripped else allowed

    @property
    def present_ticks(self) -> float:
        return self._present

    @present_ticks.setter
    def present_ticks(self, ticks: float) -> None:
        self._present = float(ticks)
        self._show_position()

    def place(self, ticks: float) -> None:
        """Stand elsewhere without having moved there."""
        self.present_ticks = self._was = ticks
        self._profile = None

    @property
    def errors(self) -> int:
        """Error bits: in every answer, and in the status register."""
        return self.memory[STATUS_AT]

    @errors.setter
    def errors(self, bits: int) -> None:
        self.memory[STATUS_AT] = bits

    def overload(self) -> None:
        """Its protection trips now: an error bit and reduced torque, until torque is switched off."""
        self._tripped = True
        self.errors |= OVERLOAD

    def advance(self, max_ticks: float) -> None:
        """Go towards the goal by at most `max_ticks`, at once and without effort."""
        goal = self.goal_ticks
        if goal is not None:
            self.present_ticks += min(max(goal - self.present_ticks, -max_ticks), max_ticks)

    def live(self, dt: float, load: float | None = None) -> None:
        """Let `dt` seconds pass. `load` is what a world makes the motor bear (-1..1 of its strength), and the world
        sets the position; without one the servo moves by itself, at most at its top speed, unless it is `held`."""
        self._follow_profile(dt)
        if load is None:
            load = self._move(dt)
        limit = self.strength if self.torque else 0.0
        allowed_current = self.peek("protection_current") * CURRENT_UNIT or float("inf")
        self.motor.push(dt, min(max(load, -limit), limit), self.peek("overload_torque") / 100, allowed_current)
        self._protect()
        self._show_motor((self._present - self._was) / dt if dt > 0 else 0.0)
        self._was = self._present

    def power_cycle(self) -> None:
        """EEPROM as last saved, everything else as at switch-on: torque off, locked, goal where the arm is."""
        for register in STS3215.values():
            self.poke(register.name, register.default)
        self.memory[:SRAM_START] = self._saved
        self.poke("torque_limit", self.peek("max_torque"))
        self._pending, self._tripped, self._profile = None, False, None
        self.motor.strained_s = self.motor.hot_wire_s = 0.0
        self._show_position()
        self.poke("goal_position", self.peek("present_position"))

    def _follow_profile(self, dt: float) -> None:
        """A goal written with a speed or an acceleration is approached by a ramp; without either, at once."""
        top, steps = abs(self.peek("goal_speed")), self.peek("acceleration")
        ramp = steps * ACCELERATION_UNIT if steps < NO_RAMP else 0.0
        if not self.torque or not (top or ramp):
            self._profile = None
            return
        at, speed = self._profile or (self._present, 0.0)
        away = self._end_ticks() - at
        pace = top or TOP_SPEED
        if ramp:
            pace = min(pace, (2 * ramp * abs(away)) ** 0.5, abs(speed) + ramp * dt)
        step = min(abs(away), pace * dt)
        self._profile = (at + (step if away > 0 else -step), pace)

    def _move(self, dt: float) -> float:
        """Without a world: towards the goal; what the motor strains with, -1..1."""
        goal = self.goal_ticks
        if goal is None:
            return 0.0
        away = goal - self._present
        if not self.held:
            self.present_ticks += min(max(away, -TOP_SPEED * dt), TOP_SPEED * dt)
            away = goal - self._present
        return min(max(away * self.peek("p_gain") / 5000, -1.0), 1.0)

    def _protect(self) -> None:
        """Trip what the motor's state trips. Register 19 says which faults let go of the joint."""
        motor, bits = self.motor, self.errors & ~VOLTAGE
        if not self.peek("min_voltage") <= motor.voltage * 10 <= self.peek("max_voltage"):
            bits |= VOLTAGE
        if motor.strained_s > self.peek("protection_time") * 0.01:
            self._tripped = True
            bits |= OVERLOAD
        if motor.hot_wire_s > self.peek("overcurrent_time") * 0.01:
            bits |= OVERCURRENT
        if motor.temperature > self.peek("max_temperature"):
            bits |= OVERHEAT
        self.errors = bits
        if bits & self.peek("unload_condition") & (OVERHEAT | OVERCURRENT):
            self.poke("torque", 0)

    def _show_motor(self, speed: float) -> None:
        motor = self.motor
        self.poke("present_speed", round(min(max(speed, -30000.0), 30000.0)))
        self.poke("present_load", round(motor.load * 1000))
        self.poke("present_current", round(motor.current / CURRENT_UNIT))
        self.poke("present_voltage", round(motor.voltage * 10))
        self.poke("present_temperature", round(motor.temperature))

    def _show_position(self) -> None:
        actual = round(self._present) + self._built_offset
        limit = (1 << 15) - 1
        self.poke("present_position", min(max(actual - self.peek("position_offset"), -limit), limit))

    # What the bus sees --------------------------------------------------------------------------------------------

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
                if at < SRAM_START and not self.memory[LOCK.address]:
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
            self.memory[TORQUE.address] = TORQUE_ON  # the real servo does this, torque off or not
            self.memory[ECHO.address : ECHO.address + 2] = self.memory[GOAL.address : GOAL.address + 2]
        if "position_offset" in touched or "torque" in touched:
            self._show_position()

    def _set_middle(self) -> None:
        """Choose the offset that makes the present position 2048; the register holds +-2047, as in the real one."""
        offset = round(self._present) + self._built_offset - MIDDLE
        self.poke("position_offset", min(max(offset, -2047), 2047))
        span = slice(STS3215["position_offset"].address, STS3215["position_offset"].address + 2)
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
