"""What every virtual servo's body has: a control table in memory, and a place in its world."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from hotpolicy.robots.servo.registers import Register


class Body:
    """A family gives its registers and rates, and says what it makes of them."""

    TABLE: ClassVar[Mapping[str, Register]]
    RATES: ClassVar[Mapping[int, int]]  # value of the baud_rate register -> baud
    memory: bytearray
    _present: float

    @property
    def id(self) -> int:
        return self.memory[self.TABLE["id"].address]

    @property
    def baud(self) -> int:
        return self.RATES.get(self.peek("baud_rate"), 0)  # 0: deaf at every rate

    @property
    def return_delay_s(self) -> float:
        return self.peek("return_delay") * 2e-6

    def peek(self, name: str) -> int:
        register = self.TABLE[name]
        return register.decode(bytes(self.memory[register.address : register.address + register.size]))

    def poke(self, name: str, value: int) -> None:
        """Change a register from inside the servo: read-only ones too, and without side effects."""
        register = self.TABLE[name]
        self.memory[register.address : register.address + register.size] = register.encode(value)

    # What the world sees ----------------------------------------------------------------------------------------------

    @property
    def torque(self) -> bool:
        return self.memory[self.TABLE["torque"].address] == 1

    @property
    def goal_ticks(self) -> float | None:
        """Where the servo drives to now, or None when it is released."""
        raise NotImplementedError

    @property
    def present_ticks(self) -> float:
        return self._present

    @present_ticks.setter
    def present_ticks(self, ticks: float) -> None:
        self._present = float(ticks)
        self._show_position()

    def advance(self, max_ticks: float) -> None:
        """Go towards the goal by at most `max_ticks`, at once and without effort."""
        goal = self.goal_ticks
        if goal is not None:
            self.present_ticks += min(max(goal - self.present_ticks, -max_ticks), max_ticks)

    def _show_position(self) -> None:
        """Into the registers, as the servo counts."""
        raise NotImplementedError
