"""What the servos of an arm report of themselves, in words."""

from __future__ import annotations

from contextlib import suppress

from hotpolicy.robots.servo.bus import ServoBus
from hotpolicy.robots.servo.family import Family
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import ServoSilent

ASK_EVERY_S = 0.5  # a servo that only says that something is wrong is asked this often what


class Complaints:
    """The error byte comes with every answer for nothing; where a register says more, it is read now and then."""

    def __init__(self, bus: ServoBus, family: Family):
        self._bus = bus
        self._family = family
        self._asked: dict[int, tuple[float, tuple[str, ...]]] = {}  # (when, what it said)

    def of(self, servo: int, error: int) -> tuple[str, ...]:
        """The faults behind the error byte of an answer of `servo`."""
        return self._family.decode_errors(error) + self._details(servo, error)

    def _details(self, servo: int, error: int) -> tuple[str, ...]:
        details = self._family.details
        if details is None or not error & details.flag:
            return ()
        asked_at, said = self._asked.get(servo, (float("-inf"), ()))
        if now() - asked_at > ASK_EVERY_S:
            register = self._family.registers[details.register]
            with suppress(ServoSilent):  # then what it said last
                said = details.decode(register.decode(self._bus.read(servo, register.address, register.size).data))
            self._asked[servo] = (now(), said)
        return said
