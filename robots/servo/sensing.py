"""What an arm knows of itself: where its joints are, who is silent, what is wrong. One read of the bus at a time."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from hotpolicy.robots.robot import ArmState
from hotpolicy.robots.servo.bus import ServoBus
from hotpolicy.robots.servo.complaints import Complaints
from hotpolicy.robots.servo.joints import Joints
from hotpolicy.robots.servo.protocol import Reply
from hotpolicy.robots.servo.tables import ArmTable
from hotpolicy.robots.servo.torque import Torque
from hotpolicy.robots.servo.watchdog import Watchdogs
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import ServoSilent

log = logging.getLogger(__name__)


class Sensing:
    """Of one arm. A servo that was away is believed again only once its turns, torque and watchdog have been looked
    at."""

    def __init__(self, bus: ServoBus, table: ArmTable, joints: Joints, torque: Torque, watchdogs: Watchdogs):
        self.ticks: dict[int, int] = {}  # last known positions by id, within the calibrated turn
        self.silent: set[int] = set()  # did not answer the last read
        self._bus = bus
        self._joints = joints
        self._torque = torque
        self._watchdogs = watchdogs
        self._complaints = Complaints(bus, table.family)
        self._present = table.family.registers["present_position"]

    def forget(self) -> None:
        """The bus was gone: nothing from before holds."""
        self.ticks.clear()
        self.silent.clear()

    def read(self) -> ArmState:
        """Positions of all joints; of a silent one the last known. Raises ServoSilent when there is none yet."""
        joints = self._joints
        replies = self._bus.sync_read(joints.ids, self._present.address, self._present.size)
        said = {servo: self._present.decode(reply.data) for servo, reply in replies.by_id.items()}
        back = self.silent & said.keys()
        if back:
            joints.count_turns({servo: said[servo] for servo in back})
            self._watchdogs.distrust()
        self.ticks.update({servo: joints.ticks(servo, ticks) for servo, ticks in said.items()})
        unknown = [servo for servo in joints.ids if servo not in self.ticks]
        if unknown:
            raise ServoSilent(f"{self._bus.port}: joint {joints.name(unknown[0])}: expected a position, none came yet")
        self.silent = set(replies.missing)
        if back and self._torque.on:
            self.silent.update(self._torque.recheck(back))
        stopped = self._revive()
        return ArmState(
            positions=np.array([joints.value(servo, self.ticks[servo]) for servo in joints.driven], dtype=np.float32),
            stale=tuple(dict.fromkeys(joints.label(servo) for servo in replies.missing)),
            faults=self._faults(replies.by_id, stopped),
            read_at=now(),
        )

    def _revive(self) -> tuple[int, ...]:
        """After a pause: who has stopped by itself. Its goal is now where it stands, and it takes goals again."""
        if not (self._torque.on and self._watchdogs.due):
            self._watchdogs.feed()
            return ()
        heard = (servo for servo in self._joints.ids if servo not in self.silent)
        stopped = self._watchdogs.revive({servo: self._joints.goal(servo, self.ticks[servo]) for servo in heard})
        if stopped:
            names = ", ".join(map(self._joints.name, stopped))
            log.warning("%s: the bus was silent for long enough that %s stopped", self._bus.port, names)
        return stopped

    def _faults(self, replies: Mapping[int, Reply], stopped: Sequence[int]) -> dict[str, tuple[str, ...]]:
        """What the servos report of themselves and what is wrong between them, by joint."""
        faults: defaultdict[str, tuple[str, ...]] = defaultdict(tuple)
        for servo, reply in replies.items():
            if reply.error:
                faults[self._joints.label(servo)] += self._complaints.of(servo, reply.error)
        for servo in stopped:
            faults[self._joints.label(servo)] += ("bus watchdog",)
        for joint, text in self._joints.disagreements(self.ticks).items():
            faults[f"{joint}.pos"] += (text,)
        return dict(faults)
