"""An arm of servos: a table of data, and one class for all tables.

What it promises: it drives only the servos it was made for, calibrated as its file says; a goal is never sent to a
released arm (writing one would switch the torque on); torque on starts from where the arm is.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from hotpolicy.robots.arms.so import SO101_FOLLOWER
from hotpolicy.robots.calibration import Calibration, JointCalibration, load_calibration
from hotpolicy.robots.robot import ArmState
from hotpolicy.robots.servo.axes import disagreements, forgotten_turns
from hotpolicy.robots.servo.bus import ServoBus, Timing
from hotpolicy.robots.servo.complaints import Complaints
from hotpolicy.robots.servo.protocol import Reply
from hotpolicy.robots.servo.registers import Register
from hotpolicy.robots.servo.stored import (
    apply_settings,
    as_counted,
    read_register,
    require_calibration,
    require_models,
    select_calibration,
    store_calibration,
)
from hotpolicy.robots.servo.tables import ArmTable
from hotpolicy.robots.servo.watchdog import Watchdogs
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import BusLost, ConfigError, LimitViolation, ServoFault, ServoSilent
from hotpolicy.runtime.messages import Joint, RobotSpec

log = logging.getLogger(__name__)

# A joint may rest this far outside of its range, against its end stop; further out, switching on would be a jump.
REST_TOLERANCE = 30  # ticks, 2.6 deg
ATTEMPTS = 3  # at what must not fail: to hold, to let go
DEFAULT_RATE_HZ = 30.0  # of an arm whose profile says nothing


def connect(
    port: str,
    calibration: Calibration | Path | str,
    *,
    table: ArmTable = SO101_FOLLOWER,
    spec: RobotSpec | None = None,
    timing: Timing | None = None,
    write: bool = False,
) -> ServoArm:
    """Open `port`, make sure that the arm of `table` is on it and calibrated as `calibration` (the file's content, path
    or id in LeRobot's folders) says. Nothing moves, and torque stays as it is.

    `spec` gives the joints narrower ranges than the calibration does, and cameras and rate. With `write` the servos
    take over the file's numbers, for which they must be released. Raises BusLost, BusBusy, WrongServo,
    CalibrationError, ConfigError; the port is free again then.
    """
    if isinstance(calibration, str | Path):
        kind = "teleoperators" if table.leader else "robots"
        calibration = load_calibration(calibration, table.calibration_names, kind)
    bus = ServoBus(port, timing, table.family.protocol())
    arm = ServoArm(bus, table, calibration, spec)
    bus.open()
    try:
        arm.verify(write)
    except BaseException:
        bus.close()
        raise
    return arm


class ServoArm:
    """Implements robots.robot.Arm. Make one with `connect`; drive it through `limits.LimitedArm` only."""

    def __init__(self, bus: ServoBus, table: ArmTable, calibration: Calibration, spec: RobotSpec | None = None):
        self.bus = bus
        self.table = table
        self._rows = table.servos
        registers = table.family.registers
        self._torque, self._goal = registers["torque"], registers["goal_position"]
        self._present = registers["present_position"]
        self._joints = {row.id: row for row in self._rows}
        self._filed = select_calibration(table, calibration)
        self._calibration = as_counted(table, self._filed)
        self.spec = spec or self._full_spec()
        _check_spec(self.spec, table)
        self._ids = tuple(self._joints)
        self._driven = tuple(row.id for row in table.joints)  # who is sent goals; shadows take their joint's
        self._ticks: dict[int, int] = {}  # last known positions, within the calibrated turn
        self._turns: dict[int, int] = {}  # ticks to add to what a servo says to get there
        self._watchdogs = Watchdogs(bus, table.family)
        self._complaints = Complaints(bus, table.family)
        self._silent: set[int] = set()  # did not answer the last read
        self.torque_on = False  # all joints are known to be energised

    # Connecting -------------------------------------------------------------------------------------------------------

    def verify(self, write: bool = False) -> None:
        """Compare the servos with table and calibration."""
        self.torque_on = False  # until it has been read
        require_models(self.bus, self.table)
        if self.table.leader:
            self.torque(False)  # a hand has to move it
        if write:
            store_calibration(self.bus, self.table, self._filed)
        require_calibration(self.bus, self.table, self._filed)
        self._count_turns(self._read_present())
        self._watchdogs.distrust()
        self.torque_on = all(read_register(self.bus, self.table, "torque").values())

    def reconnect(self) -> None:
        """After BusLost: open the port again by its name, and trust nothing from before."""
        self.bus.open()
        self._ticks.clear()
        self._silent.clear()
        self.verify()

    # Driving ----------------------------------------------------------------------------------------------------------

    def read(self) -> ArmState:
        """Positions of all joints; of a silent one the last known. Raises ServoSilent when there is none yet."""
        replies = self.bus.sync_read(self._ids, self._present.address, self._present.size)
        raw = {servo: self._present.decode(reply.data) for servo, reply in replies.by_id.items()}
        back = self._silent & raw.keys()
        if back:
            self._count_turns({servo: raw[servo] for servo in back})
            self._watchdogs.distrust()
        self._ticks.update({servo: ticks + self._turns.get(servo, 0) for servo, ticks in raw.items()})
        unknown = [servo for servo in self._ids if servo not in self._ticks]
        if unknown:
            raise ServoSilent(f"{self.bus.port}: joint {self._name(unknown[0])}: expected a position, none came yet")
        self._silent = set(replies.missing)
        if back and self.torque_on:
            self._recheck_torque(back)
        stopped = self._revive()
        positions = [self._of(s).to_value(self._ticks[s], self._joints[s].unit) for s in self._driven]
        return ArmState(
            positions=np.array(positions, dtype=np.float32),
            stale=tuple(dict.fromkeys(self._label(servo) for servo in replies.missing)),
            faults=self._faults(replies.by_id, stopped),
            read_at=now(),
        )

    def send(self, positions: np.ndarray) -> None:
        """One packet with the goals of all joints, cut to the calibrated ticks. Raises LimitViolation, and sends
        nothing, when the arm is released: a goal would switch its torque on."""
        if self.torque_on and self._watchdogs.due:
            self.read()  # a servo that has stopped by itself would not take the goal
        if not self.torque_on:
            raise LimitViolation(f"{self.bus.port}: expected torque on before a goal, it is off; nothing was sent")
        self._send_ticks(
            {
                servo: self._of(servo).to_ticks(float(value), self._joints[servo].unit)
                for servo, value in zip(self._driven, positions, strict=True)
            }
        )

    def hold(self) -> None:
        """Goal := present, and read back: nobody answers the packet with the goals, and an arm whose packet was lost
        goes on. Joints that do not answer keep the goal they have; a released arm stays released."""
        if not self.torque_on:
            return
        self.read()
        left = {servo: self._ticks[servo] for servo in self._driven if servo not in self._silent}
        for _ in range(ATTEMPTS):
            if not left or not self.torque_on:
                return
            self._send_ticks(left)
            replies = self.bus.sync_read(tuple(left), self._goal.address, self._goal.size).by_id
            taken = {servo for servo, reply in replies.items() if reply.data == self._goal_bytes(servo, left[servo])}
            left = {servo: ticks for servo, ticks in left.items() if servo not in taken}
        if left:
            log.warning("%s: no sign that %s holds", self.bus.port, ", ".join(map(self._name, left)))

    def torque(self, on: bool) -> None:
        """On: the present position becomes the goal, then torque, then both are read back. Raises LimitViolation when a
        joint is too far outside its range, ServoSilent when one does not answer, ServoFault when one does not obey.
        Off: every joint is tried before ServoFault names those not seen to be off."""
        if on:
            self._switch_on()
        else:
            self._switch_off()

    def close(self, release: bool = False) -> None:
        """Hold, let go if told to, give the port back: each is tried whatever became of the one before. Torque stays on
        unless `release`: an arm let go falls. On a dead bus nothing can be done, and nothing is raised; raises
        ServoFault when a joint was not seen to let go."""
        try:
            if self.bus.is_open:
                try:
                    self.hold()
                except ServoSilent as error:
                    log.warning("closing without holding: %s", error)
                if release:
                    self.torque(False)
                else:
                    self._disarm()
        except BusLost as error:
            log.warning("closing without %s: %s", "letting go" if release else "holding", error)
        finally:
            self.bus.close()

    def _switch_on(self) -> None:
        said = self._read_present()
        self._count_turns(said)
        present = {servo: ticks + self._turns.get(servo, 0) for servo, ticks in said.items()}
        for row in self._rows:
            limit, at = self._calibration[row.name], present[row.id]
            if not limit.range_min - REST_TOLERANCE <= at <= limit.range_max + REST_TOLERANCE:
                raise LimitViolation(
                    f"{self.bus.port}: joint {row.name}: expected at ticks {limit.range_min}..{limit.range_max} before "
                    f"torque, it is at {at}; move it by hand, or recalibrate"
                )
        for joint, text in disagreements(self.table, said).items():
            raise LimitViolation(f"{self.bus.port}: joint {joint}: {text}, so the two would pull against one another")
        on_already = read_register(self.bus, self.table, "torque")
        released = [row for row in self._rows if not on_already[row.name]]
        for row in released:
            apply_settings(self.bus, self.table, row)
        try:
            for row in self._rows:  # the goal first, and acknowledged: one left from before would be driven to at once
                self._watchdogs.arm(row.id)
                self._write(row.id, self._goal, self._goal_bytes(row.id, present[row.id]))
                self._write(row.id, self._torque, self._torque.encode(1))
            self._watchdogs.feed()
            off = [name for name, value in read_register(self.bus, self.table, "torque").items() if not value]
            if off:
                raise ServoFault(f"{self.bus.port}: expected torque on, it stays off at {', '.join(off)}")
        except (ServoSilent, ServoFault):
            self._let_go([row.id for row in released])  # half an arm under torque is worse than none
            raise
        self.torque_on = True

    def _write(self, servo: int, register: Register, data: bytes) -> None:
        error = self.bus.write(servo, register.address, data)
        if error:
            texts = ", ".join(self.table.family.decode_errors(error))
            log.warning("%s: joint %s reports %s", self.bus.port, self._name(servo), texts)

    def _switch_off(self) -> None:
        left = self._let_go(list(self._ids))
        if left:
            names = ", ".join(map(self._name, left))
            raise ServoFault(f"{self.bus.port}: expected torque off, it is on or unknown at {names}")

    def _let_go(self, servos: Sequence[int]) -> list[int]:
        """Switch them off, whatever error bits they report; who was not seen to obey."""
        self.torque_on = False
        left = list(servos)
        for _ in range(ATTEMPTS):
            for servo in left:
                with suppress(ServoSilent):  # asked for below, and tried again
                    self._write(servo, self._torque, self._torque.encode(0))
                    self._watchdogs.disarm(servo)
            replies = self.bus.sync_read(left, self._torque.address, self._torque.size).by_id
            left = [servo for servo in left if servo not in replies or self._torque.decode(replies[servo].data)]
            if not left:
                break
        return left

    def _disarm(self) -> None:
        """The arm is left holding, and whoever drives it next may not know of the servos' watchdogs."""
        for servo in self._ids:
            with suppress(ServoSilent):
                self._watchdogs.disarm(servo)

    def _revive(self) -> tuple[int, ...]:
        """After a pause: who has stopped by itself. Its goal is now where it stands, and it takes goals again."""
        if not (self.torque_on and self._watchdogs.due):
            self._watchdogs.feed()
            return ()
        heard = (servo for servo in self._ids if servo not in self._silent)
        stopped = self._watchdogs.revive(
            {servo: self._said(servo, self._of(servo).clamp(self._ticks[servo])) for servo in heard}
        )
        if stopped:
            names = ", ".join(self._name(servo) for servo in stopped)
            log.warning("%s: the bus was silent for long enough that %s stopped", self.bus.port, names)
        return stopped

    def _read_present(self) -> dict[int, int]:
        """What all servos say of their position, by id. Raises ServoSilent."""
        by_name = read_register(self.bus, self.table, "present_position")
        return {row.id: by_name[row.name] for row in self._rows}

    def _count_turns(self, said: Mapping[int, int]) -> None:
        for servo, ticks in said.items():
            if self._joints[servo].turns:
                self._turns[servo] = forgotten_turns(self._of(servo), ticks, REST_TOLERANCE)

    def _said(self, servo: int, ticks: int) -> int:
        """A position as the servo itself counts it."""
        return ticks - self._turns.get(servo, 0)

    def _faults(self, replies: Mapping[int, Reply], stopped: Sequence[int]) -> dict[str, tuple[str, ...]]:
        """What the servos report of themselves and what is wrong between them, by joint."""
        faults: defaultdict[str, tuple[str, ...]] = defaultdict(tuple)
        for servo, reply in replies.items():
            if reply.error:
                faults[self._label(servo)] += self._complaints.of(servo, reply.error)
        for servo in stopped:
            faults[self._label(servo)] += ("bus watchdog",)
        if self.table.shadows:
            said = {servo: self._said(servo, ticks) for servo, ticks in self._ticks.items()}
            for joint, text in disagreements(self.table, said).items():
                faults[f"{joint}.pos"] += (text,)
        return dict(faults)

    def _recheck_torque(self, servos: set[int]) -> None:
        """A servo that was away may have lost power; the next goal would switch it on wherever its arm has sunk to."""
        replies = self.bus.sync_read(tuple(servos), self._torque.address, self._torque.size)
        self._silent.update(replies.missing)  # away again: ask when it is back
        lost = [self._name(servo) for servo, reply in replies.by_id.items() if not self._torque.decode(reply.data)]
        if lost:
            self.torque_on = False
            log.error("%s: torque was lost at %s; no goal is sent until it is on again", self.bus.port, ", ".join(lost))

    def _send_ticks(self, ticks: Mapping[int, int]) -> None:
        self.bus.sync_write(self._goal.address, {servo: self._goal_bytes(servo, at) for servo, at in ticks.items()})

    def _goal_bytes(self, servo: int, ticks: int) -> bytes:
        """A goal as the servo takes it, cut to the calibrated ticks."""
        return self._goal.encode(self._said(servo, self._of(servo).clamp(ticks)))

    def _of(self, servo: int) -> JointCalibration:
        return self._calibration[self._name(servo)]

    def _name(self, servo: int) -> str:
        return self._joints[servo].name

    def _label(self, servo: int) -> str:
        """The joint a servo moves, as states and actions name it."""
        row = self._joints[servo]
        return f"{row.follows or row.name}.pos"

    def _full_spec(self) -> RobotSpec:
        joints = []
        for row in self.table.joints:
            limit = self._calibration[row.name]
            low, high = sorted(limit.to_value(ticks, row.unit) for ticks in (limit.range_min, limit.range_max))
            joints.append(Joint(f"{row.name}.pos", row.unit, low, high))
        return RobotSpec(tuple(joints), cameras=(), rate_hz=DEFAULT_RATE_HZ)


def _check_spec(spec: RobotSpec, table: ArmTable) -> None:
    expected = [(f"{joint.name}.pos", joint.unit) for joint in table.joints]
    got = [(joint.name, joint.unit) for joint in spec.joints]
    if got != expected:
        raise ConfigError(f"joints of a {table.name}: expected {expected}, got {got}")
