"""Switching an arm on, where it is, and off, and being sure of both.

What it promises: torque goes on only where the arm rests within its range, with the present position as its goal, and
at all joints or at none; letting go tries every servo, whatever it reports, and says who was not seen to obey.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress

from hotpolicy.robots.servo.bus import ServoBus
from hotpolicy.robots.servo.joints import REST_TOLERANCE, Joints
from hotpolicy.robots.servo.registers import Register
from hotpolicy.robots.servo.stored import apply_settings, read_positions, read_register
from hotpolicy.robots.servo.tables import ArmTable
from hotpolicy.robots.servo.watchdog import Watchdogs
from hotpolicy.runtime.errors import LimitViolation, ServoFault, ServoSilent

log = logging.getLogger(__name__)

ATTEMPTS = 3  # to let go


class Torque:
    """Of all servos of one arm."""

    def __init__(self, bus: ServoBus, table: ArmTable, joints: Joints, watchdogs: Watchdogs):
        self.on = False  # all joints are known to be energised
        self._bus = bus
        self._table = table
        self._joints = joints
        self._watchdogs = watchdogs
        self._register = table.family.registers["torque"]
        self._goal = table.family.registers["goal_position"]

    def look(self) -> None:
        """Read whether it is on. Raises ServoSilent."""
        self.on = all(read_register(self._bus, self._table, "torque").values())

    def switch_on(self) -> None:
        """The present position becomes the goal, then torque, then that is read back. Raises LimitViolation when a
        joint is too far outside its range, ServoSilent when one does not answer, ServoFault when one does not obey."""
        said = read_positions(self._bus, self._table)
        self._joints.count_turns(said)
        present = {servo: self._joints.ticks(servo, ticks) for servo, ticks in said.items()}
        self._require_rest(present)
        on_already = read_register(self._bus, self._table, "torque")
        released = [row for row in self._table.servos if not on_already[row.name]]
        for row in released:
            apply_settings(self._bus, self._table, row)
        try:
            for servo in self._joints.ids:  # the goal first, and acknowledged: an old one would be driven to at once
                self._watchdogs.arm(servo)
                self._write(servo, self._goal, self._joints.goal_bytes(servo, present[servo]))
                self._write(servo, self._register, self._register.encode(1))
            self._watchdogs.feed()
            off = [name for name, value in read_register(self._bus, self._table, "torque").items() if not value]
            if off:
                raise ServoFault(f"{self._bus.port}: expected torque on, it stays off at {', '.join(off)}")
        except (ServoSilent, ServoFault):
            self._let_go([row.id for row in released])  # half an arm under torque is worse than none
            raise
        self.on = True

    def switch_off(self) -> None:
        """Every joint is tried before ServoFault names those not seen to be off."""
        left = self._let_go(self._joints.ids)
        if left:
            names = ", ".join(map(self._joints.name, left))
            raise ServoFault(f"{self._bus.port}: expected torque off, it is on or unknown at {names}")

    def recheck(self, servos: Collection[int]) -> tuple[int, ...]:
        """A servo that was away may have lost power; the next goal would switch it on wherever its arm has sunk to. Who
        did not answer: ask when it is back."""
        replies = self._bus.sync_read(tuple(servos), self._register.address, self._register.size)
        lost = [servo for servo, reply in replies.by_id.items() if not self._register.decode(reply.data)]
        if lost:
            self.on = False
            names = ", ".join(map(self._joints.name, lost))
            log.error("%s: torque was lost at %s; no goal is sent until it is on again", self._bus.port, names)
        return replies.missing

    def _require_rest(self, present: Mapping[int, int]) -> None:
        """Raises LimitViolation where switching on would be a jump. `present`: ticks by id."""
        for servo, at in present.items():
            limit = self._joints.limit(servo)
            if not limit.range_min - REST_TOLERANCE <= at <= limit.range_max + REST_TOLERANCE:
                raise LimitViolation(
                    f"{self._bus.port}: joint {self._joints.name(servo)}: expected at ticks {limit.range_min}.."
                    f"{limit.range_max} before torque, it is at {at}; move it by hand, or recalibrate"
                )
        for joint, text in self._joints.disagreements(present).items():
            raise LimitViolation(f"{self._bus.port}: joint {joint}: {text}, so the two would pull against one another")

    def _let_go(self, servos: Sequence[int]) -> list[int]:
        """Switch them off, whatever error bits they report; who was not seen to obey."""
        self.on = False
        left = list(servos)
        for _ in range(ATTEMPTS):
            for servo in left:
                with suppress(ServoSilent):  # asked for below, and tried again
                    self._write(servo, self._register, self._register.encode(0))
                    self._watchdogs.disarm(servo)
            replies = self._bus.sync_read(left, self._register.address, self._register.size).by_id
            left = [servo for servo in left if servo not in replies or self._register.decode(replies[servo].data)]
            if not left:
                break
        return left

    def _write(self, servo: int, register: Register, data: bytes) -> None:
        error = self._bus.write(servo, register.address, data)
        if error:
            texts = ", ".join(self._table.family.decode_errors(error))
            log.warning("%s: joint %s reports %s", self._bus.port, self._joints.name(servo), texts)
