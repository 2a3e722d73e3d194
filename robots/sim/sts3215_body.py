"""The body of a virtual STS3215: its registers as a world and time see them. What the bus does is in `sts3215.py`.

A world moves the servo: each step it reads `goal_ticks` (None when released) and sets `present_ticks`, both in the
frame the servo was built with. Someone who rewrites the offset register over the wire sees the registers move, and the
world does not notice, as on a real arm.
"""

from __future__ import annotations

from hotpolicy.robots.servo.registers import BAUD_RATES, SRAM_START, STS3215
from hotpolicy.robots.sim.body import Body
from hotpolicy.robots.sim.motor import Motor

MEMORY = 128  # bytes of control table
TORQUE_AT, STATUS_AT = (STS3215[name].address for name in ("torque", "status"))
TORQUE_ON = 1
VOLTAGE, OVERHEAT, OVERCURRENT, OVERLOAD = 1 << 0, 1 << 2, 1 << 3, 1 << 5  # error bits
TOP_SPEED = 3400.0  # ticks/s without load, 50 turns a minute
CURRENT_UNIT = 6.5e-3  # A
ACCELERATION_UNIT = 100.0  # ticks/s^2
NO_RAMP = 254  # the quickest ramp, which no motor with an arm on it can follow anyway


class Sts3215Body(Body):
    """The memory of one servo, and what time does to it.

    `goal_on_torque="stale"`: torque on drives to whatever the goal register holds. `"present"`: the firmware first
    takes the present position as goal. Both have been reported; a driver must be safe with either.
    """

    TABLE, RATES = STS3215, BAUD_RATES

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
