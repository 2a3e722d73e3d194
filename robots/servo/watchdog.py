"""The servos' own watchdogs: armed while torque is on, and what a pause of the program means.

A servo whose watchdog has tripped stands still with its torque on, and ignores goals. It does so when a program hangs,
which is what it is for, and also whenever nobody talks to the arm for a while, between two episodes say. So after a
pause, before anything is sent, those that tripped take their present position as goal and are armed again.
"""

from __future__ import annotations

from collections.abc import Mapping

from hotpolicy.robots.servo.bus import ServoBus
from hotpolicy.robots.servo.family import Family
from hotpolicy.runtime.clock import now


class Watchdogs:
    """Of the servos of one arm. Does nothing for a family without."""

    def __init__(self, bus: ServoBus, family: Family):
        self._bus = bus
        self._spec = family.watchdog
        self._registers = family.registers
        self._fed_at: float | None = None  # when all servos were last known to hear us

    @property
    def due(self) -> bool:
        """Whether one may have tripped since they were last fed, so that `revive` must look."""
        if self._spec is None:
            return False
        return self._fed_at is None or now() - self._fed_at > self._spec.seconds / 2

    def feed(self) -> None:
        """All servos have just heard something."""
        self._fed_at = now()

    def distrust(self) -> None:
        """A servo did not hear us for a while, or nobody knows."""
        self._fed_at = None

    def arm(self, servo: int) -> None:
        """Clear and start it; goals are taken again. Raises ServoSilent."""
        if self._spec is not None:
            self._write(servo, self._spec.off)
            self._write(servo, self._spec.armed)

    def disarm(self, servo: int) -> None:
        """Whoever comes next may know nothing of it. Raises ServoSilent."""
        if self._spec is not None:
            self._write(servo, self._spec.off)

    def revive(self, goals: Mapping[int, int]) -> tuple[int, ...]:
        """Arm those that are not, after giving those that tripped the goals (raw ticks) of `goals`; who had tripped.
        A servo that does not answer is left alone; `distrust` when it does. Raises ServoSilent."""
        if self._spec is None:
            return ()
        register, goal = self._registers[self._spec.register], self._registers["goal_position"]
        replies = self._bus.sync_read(tuple(goals), register.address, register.size)
        values = {servo: register.decode(reply.data) for servo, reply in replies.by_id.items()}
        tripped = tuple(servo for servo, value in values.items() if value == self._spec.tripped)
        for servo in tripped:  # cleared first: until then it takes no goal
            self._write(servo, self._spec.off)
            self._bus.write(servo, goal.address, goal.encode(goals[servo]))
        for servo, value in values.items():
            if value != self._spec.armed:
                self._write(servo, self._spec.armed)
        self.feed()
        return tripped

    def _write(self, servo: int, value: int) -> None:
        assert self._spec is not None
        register = self._registers[self._spec.register]
        self._bus.write(servo, register.address, register.encode(value))
