"""A family of servos: the protocol they speak, their control table, and how an arm has to treat them. Data only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hotpolicy.robots.servo.protocol import Protocol
from hotpolicy.robots.servo.registers import Register

# What ServoArm and the calibration need of every control table; all else is up to the family.
REQUIRED = ("model", "torque", "goal_position", "present_position", "position_offset", "min_position", "max_position")


@dataclass(frozen=True, slots=True)
class Watchdog:
    """A register with which a servo stops by itself when the bus falls silent while its torque is on.

    It then refuses goals until the register has been cleared; a sync write does not tell.
    """

    register: str
    armed: int  # its value for `seconds`
    seconds: float
    tripped: int  # its value after that
    off: int = 0


@dataclass(frozen=True, slots=True)
class Details:
    """A register with the faults behind an answer's error byte, where that has the bits `flag`."""

    register: str
    flag: int
    decode: Callable[[int], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Family:
    """Servos that share a protocol and a control table."""

    name: str
    protocol: Callable[[], Protocol]  # one per bus: it may remember what the servos on that bus can do
    registers: Mapping[str, Register]  # with at least the names in REQUIRED
    models: Mapping[int, str]  # model number -> its name
    baud_rates: Mapping[int, int]  # what register baud_rate holds -> bit/s
    decode_errors: Callable[[int], tuple[str, ...]]  # the error byte of an answer, in words
    offset_limit: int  # a position offset lies within +- this, ticks
    offset_adds: bool = False  # present = actual + offset; otherwise actual - offset
    position_limit: int = 4095  # min and max position lie within 0 and this, ticks
    drive_mode_in_servo: bool = False  # the servo itself runs backwards, so values need not be turned round
    unlock: Mapping[str, int] | None = None  # written before the EEPROM is, to make it stay
    lock: Mapping[str, int] | None = None  # written after
    watchdog: Watchdog | None = None  # the servos' own, where they have one
    details: Details | None = None  # where more is known of a fault than the error byte says

    def describe(self, model: int) -> str:
        return f"{self.models.get(model, 'unknown model')} ({model})"
