"""The control table of Dynamixel's X series as data, and what its models differ in. Knows no port and no arm.

Addresses below 64 are EEPROM: they can be written only while torque is off, and outlive a power cycle. All models here
have the same addresses; a model without a current sensor has its load where the others have their current.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from hotpolicy.robots.servo.registers import Register

SRAM_START = 64  # first address that a power cycle resets


class Mode(IntEnum):
    """Register `mode`."""

    CURRENT = 0
    VELOCITY = 1
    POSITION = 3  # within the position limits, one turn
    EXTENDED = 4  # over several turns; the position limits do not count
    CURRENT_POSITION = 5  # like EXTENDED, pressing no harder than goal_current
    PWM = 16


REVERSED = 1  # bit 0 of `drive_mode`: the servo counts the other way round
OFFSET_LIMIT = 1_044_479  # ticks, either way
NO_SHADOW = 255  # `shadow_id` of a servo that follows no other
WATCHDOG_UNIT_S = 0.02  # of register `bus_watchdog`
WATCHDOG_TRIPPED = -1  # it holds this once the bus was silent for too long: the servo stopped, goals are refused

XSERIES = {
    register.name: register
    for register in (
        Register("model", 0, 2, default=1060, read_only=True),
        Register("firmware", 6, default=47, read_only=True),
        Register("id", 7, default=1),
        Register("baud_rate", 8, default=1),  # key of BAUD_RATES
        Register("return_delay", 9, default=250),  # 2 us
        Register("drive_mode", 10),  # bit 0: REVERSED
        Register("mode", 11, default=3),  # see Mode
        Register("shadow_id", 12, default=NO_SHADOW),  # also obeys what is written to this id, and answers to its own
        Register("position_offset", 20, 4, signed=True),  # ticks; present = actual + offset
        Register("moving_threshold", 24, 4, default=10),  # 0.229 rpm
        Register("max_temperature", 31, default=72),  # deg C
        Register("max_voltage", 32, 2, default=140),  # 0.1 V
        Register("min_voltage", 34, 2, default=60),  # 0.1 V
        Register("pwm_limit", 36, 2, default=885),  # 0.113 %
        Register("current_limit", 38, 2, default=0),  # see Model
        Register("velocity_limit", 44, 4, default=265),  # 0.229 rpm
        Register("max_position", 48, 4, default=4095),  # ticks
        Register("min_position", 52, 4),  # ticks
        Register("shutdown", 63, default=52),  # bits of hardware_error that switch the torque off
        Register("torque", 64),  # 0 off, 1 on
        Register("led", 65),
        Register("status_level", 68, default=2),  # 0: answers PING only, 1: and READ, 2: everything
        Register("hardware_error", 70, read_only=True),  # see HARDWARE_BITS
        Register("position_d_gain", 80, 2),
        Register("position_i_gain", 82, 2),
        Register("position_p_gain", 84, 2, default=800),
        Register("bus_watchdog", 98, signed=True),  # WATCHDOG_UNIT_S; 0 off
        Register("goal_pwm", 100, 2, signed=True, default=885),  # 0.113 %
        Register("goal_current", 102, 2, signed=True),  # see Model
        Register("goal_velocity", 104, 4, signed=True),  # 0.229 rpm
        Register("profile_acceleration", 108, 4),
        Register("profile_velocity", 112, 4),  # 0.229 rpm; 0: as fast as it can
        Register("goal_position", 116, 4, signed=True),  # ticks
        Register("moving", 122, read_only=True),
        Register("present_current", 126, 2, signed=True, read_only=True),  # see Model
        Register("present_velocity", 128, 4, signed=True, read_only=True),  # 0.229 rpm
        Register("present_position", 132, 4, signed=True, read_only=True),  # ticks
        Register("present_voltage", 144, 2, default=120, read_only=True),  # 0.1 V
        Register("present_temperature", 146, default=30, read_only=True),  # deg C
    )
}

GOALS = ("goal_pwm", "goal_current", "goal_velocity", "goal_position")  # read-only once the watchdog has tripped

BAUD_RATES = {0: 9_600, 1: 57_600, 2: 115_200, 3: 1_000_000, 4: 2_000_000, 5: 3_000_000, 6: 4_000_000}
FACTORY_BAUD = 57_600

HARDWARE_BITS = {0: "voltage", 2: "overheat", 3: "motor encoder", 4: "electrical shock", 5: "overload"}
ERRORS = {
    1: "result fail",
    2: "instruction",
    3: "CRC",
    4: "data range",
    5: "data length",
    6: "data limit",
    7: "access",
}
ALERT = 0x80  # bit of an answer's error byte: see register hardware_error


@dataclass(frozen=True, slots=True)
class Model:
    """What one model has that another has not."""

    name: str
    modes: frozenset[Mode]
    current_limit: int | None  # factory setting, `current_ma` each; None: no current sensor
    current_ma: float  # mA of one unit of current
    position_p_gain: int = 800  # factory settings
    shutdown: int = 52


TURNS = frozenset((Mode.VELOCITY, Mode.POSITION, Mode.EXTENDED, Mode.PWM))
ALL_MODES = TURNS | {Mode.CURRENT, Mode.CURRENT_POSITION}

MODELS = {
    1020: Model("XM430-W350", ALL_MODES, 1193, 2.69),
    1030: Model("XM430-W210", ALL_MODES, 1193, 2.69),
    1060: Model("XL430-W250", TURNS, None, 0.0),
    1070: Model("XC430-W150", TURNS, None, 0.0),
    1080: Model("XC430-W240", TURNS, None, 0.0),
    1090: Model("2XL430-W250", TURNS, None, 0.0),
    1120: Model("XM540-W270", ALL_MODES, 2047, 2.69),
    1130: Model("XM540-W150", ALL_MODES, 2047, 2.69),
    1190: Model("XL330-M077", ALL_MODES, 1750, 1.0, position_p_gain=400, shutdown=53),
    1200: Model("XL330-M288", ALL_MODES, 1750, 1.0, position_p_gain=400, shutdown=53),
}


def decode_errors(error: int) -> tuple[str, ...]:
    """An answer's error byte in words."""
    number = error & ~ALERT
    refused = (ERRORS.get(number, f"error {number}"),) if number else ()
    return (("hardware alert",) if error & ALERT else ()) + refused


def decode_hardware(value: int) -> tuple[str, ...]:
    """Names of the bits set in register hardware_error."""
    return tuple(HARDWARE_BITS.get(bit, f"hardware error bit {bit}") for bit in range(8) if value >> bit & 1)
