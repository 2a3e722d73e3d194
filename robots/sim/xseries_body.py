"""The body of a virtual Dynamixel X servo: its registers as a world sees them. What the bus does is in `xseries.py`.

A world moves it as it moves the Feetech ones: it reads `goal_ticks` (None when released) and sets `present_ticks`, both
in the frame the servo was built with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hotpolicy.robots.servo.dynamixel_registers import (
    BAUD_RATES,
    MODELS,
    REVERSED,
    SRAM_START,
    WATCHDOG_TRIPPED,
    WATCHDOG_UNIT_S,
    XSERIES,
    Mode,
)
from hotpolicy.robots.servo.registers import RESOLUTION
from hotpolicy.robots.sim.body import Body
from hotpolicy.runtime.clock import now

MEMORY = 256  # bytes of control table
OVERLOAD = 1 << 5  # bit of hardware_error
WATCHDOG = XSERIES["bus_watchdog"].address
TRIPPED = WATCHDOG_TRIPPED & 0xFF  # as it lies in memory
POSITION_MODES = (Mode.POSITION, Mode.EXTENDED, Mode.CURRENT_POSITION)


class XSeriesBody(Body):
    """The memory of one servo and how a world sees it.

    `goal_on_torque`: as for VirtualServo, what torque on makes of a goal from before. `fast`: its firmware knows fast
    sync reads. A servo whose shutdown has tripped refuses torque until it is rebooted.
    """

    TABLE, RATES = XSERIES, BAUD_RATES

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
