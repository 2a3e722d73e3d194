"""What load and time do to a servo's motor: current, heat, voltage, and the trips of its protection. No registers.

Rough on purpose: the right quantities move in the right direction and at a believable pace; none was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

AMBIENT = 30.0  # deg C
SUPPLY = 12.0  # V
STALL_CURRENT = 2.7  # A, at full load
SAG = 0.4  # V lost on the cable at full load
HEATING = 60.0  # deg C above the room that full load ends at
COOLING_S = 120.0  # time constant


@dataclass(slots=True)
class Motor:
    """One motor's body."""

    supply: float = SUPPLY  # V
    temperature: float = AMBIENT  # deg C
    load: float = 0.0  # -1..1 of its strength
    strained_s: float = 0.0  # how long the load has been above what is allowed for a while
    hot_wire_s: float = 0.0  # how long the current has

    @property
    def current(self) -> float:
        """A, signed as the load."""
        return self.load * STALL_CURRENT

    @property
    def voltage(self) -> float:
        return self.supply - abs(self.load) * SAG

    def push(self, dt: float, load: float, allowed_load: float, allowed_current: float) -> None:
        """Bear `load` for `dt` seconds."""
        self.load = load
        self.strained_s = self.strained_s + dt if abs(load) >= allowed_load else 0.0
        self.hot_wire_s = self.hot_wire_s + dt if abs(self.current) >= allowed_current else 0.0
        ends_at = AMBIENT + HEATING * load * load
        self.temperature += (ends_at - self.temperature) * min(1.0, dt / COOLING_S)
