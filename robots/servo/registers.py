"""The control table of Feetech's STS3215 as data, and how its numbers are written. Knows no port and no arm.

Addresses below 40 are EEPROM: written there, a value outlives a power cycle only while `lock` is 0.
Units of currents, speeds and loads are the vendor's, not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from hotpolicy.runtime.errors import BadRequest

SRAM_START = 40  # first address that a power cycle resets
RESOLUTION = 4096  # ticks per turn


@dataclass(frozen=True, slots=True)
class Register:
    """One entry of a control table. Negative numbers are sign and magnitude, the sign in bit `sign_bit`, or two's
    complement where `signed`."""

    name: str
    address: int
    size: int = 1  # bytes, low byte first
    sign_bit: int | None = None
    default: int = 0
    read_only: bool = False
    signed: bool = False

    def encode(self, value: int) -> bytes:
        """Raises BadRequest when the register cannot hold `value`."""
        bits = 8 * self.size - 1 if self.signed else 8 * self.size if self.sign_bit is None else self.sign_bit
        high = (1 << bits) - 1
        low = -high - 1 if self.signed else 0 if self.sign_bit is None else -high
        if not low <= value <= high:
            raise BadRequest(f"register {self.name}: expected {low}..{high}, got {value}")
        if self.sign_bit is not None and value < 0:
            value = -value | 1 << self.sign_bit
        return value.to_bytes(self.size, "little", signed=self.signed)

    def decode(self, data: bytes) -> int:
        """Raises BadRequest when `data` is not `size` bytes long."""
        if len(data) != self.size:
            raise BadRequest(f"register {self.name}: expected {self.size} bytes, got {len(data)}")
        raw = int.from_bytes(data, "little", signed=self.signed)
        if self.sign_bit is None:
            return raw
        magnitude = raw & (1 << self.sign_bit) - 1
        return -magnitude if raw >> self.sign_bit & 1 else magnitude


STS3215 = {
    register.name: register
    for register in (
        Register("firmware_major", 0, default=3, read_only=True),
        Register("firmware_minor", 1, default=10, read_only=True),
        Register("model", 3, 2, default=777, read_only=True),
        Register("id", 5, default=1),
        Register("baud_rate", 6),  # key of BAUD_RATES
        Register("return_delay", 7),  # 2 us
        Register("status_level", 8, default=1),  # 0: answers PING and READ only
        Register("min_position", 9, 2),  # ticks
        Register("max_position", 11, 2, default=4095),  # ticks
        Register("max_temperature", 13, default=70),  # deg C
        Register("max_voltage", 14, default=140),  # 0.1 V
        Register("min_voltage", 15, default=40),  # 0.1 V
        Register("max_torque", 16, 2, default=1000),  # 0.1 %
        Register("phase", 18, default=12),  # bit 4: multi-turn feedback
        Register("unload_condition", 19, default=44),
        Register("led_condition", 20, default=47),
        Register("p_gain", 21, default=32),
        Register("d_gain", 22, default=32),
        Register("i_gain", 23),
        Register("start_force", 24, 2, default=16),
        Register("dead_zone_cw", 26, default=1),
        Register("dead_zone_ccw", 27, default=1),
        Register("protection_current", 28, 2, default=500),  # 6.5 mA
        Register("angular_resolution", 30, default=1),
        Register("position_offset", 31, 2, sign_bit=11),  # present = actual - offset
        Register("mode", 33),  # 0 position, 1 speed, 2 PWM, 3 step
        Register("protective_torque", 34, default=20),  # %
        Register("protection_time", 35, default=200),  # 10 ms
        Register("overload_torque", 36, default=80),  # %
        Register("speed_p_gain", 37, default=10),
        Register("overcurrent_time", 38, default=200),  # 10 ms
        Register("speed_i_gain", 39, default=200),
        Register("torque", 40),  # 0 off, 1 on, 128: make the present position the middle, 2048
        Register("acceleration", 41),  # 100 steps/s^2
        Register("goal_position", 42, 2, sign_bit=15),  # ticks; writing it switches the torque on
        Register("goal_time", 44, 2),
        Register("goal_speed", 46, 2, sign_bit=15),  # steps/s
        Register("torque_limit", 48, 2, default=1000),  # 0.1 %
        Register("lock", 55, default=1),  # 0: EEPROM writes persist
        Register("present_position", 56, 2, sign_bit=15, read_only=True),  # ticks
        Register("present_speed", 58, 2, sign_bit=15, read_only=True),  # steps/s
        Register("present_load", 60, 2, sign_bit=10, read_only=True),  # 0.1 %
        Register("present_voltage", 62, default=120, read_only=True),  # 0.1 V
        Register("present_temperature", 63, default=30, read_only=True),  # deg C
        Register("status", 65, read_only=True),  # the error bits
        Register("moving", 66, read_only=True),
        Register("present_current", 69, 2, sign_bit=15, read_only=True),  # 6.5 mA
        Register("goal_echo", 71, 2, sign_bit=15, read_only=True),
        Register("max_acceleration", 85, default=254),  # 100 steps/s^2
    )
}

MODELS = {777: "STS3215", 2825: "STS3250", 11272: "SM8512BL", 1284: "SCS0009"}

BAUD_RATES = {0: 1_000_000, 1: 500_000, 2: 250_000, 3: 128_000, 4: 115_200, 5: 76_800, 6: 57_600, 7: 38_400}

ERROR_BITS = {0: "voltage", 1: "angle sensor", 2: "overheat", 3: "overcurrent", 5: "overload"}


def decode_errors(error: int) -> tuple[str, ...]:
    """Names of the bits set in an answer's error byte (register `status` has the same bits)."""
    return tuple(ERROR_BITS.get(bit, f"error bit {bit}") for bit in range(8) if error >> bit & 1)
