"""An arm of servos: a table of data, and one class for all tables.

What it promises: it drives only the servos it was made for, calibrated as its file says; a goal is never sent to a
released arm (writing one would switch the torque on); torque on starts from where the arm is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from hotpolicy.robots.arms.so import SO101_FOLLOWER
from hotpolicy.robots.calibration import Calibration, load_calibration
from hotpolicy.robots.robot import ArmState
from hotpolicy.robots.servo.bus import ServoBus, Timing
from hotpolicy.robots.servo.joints import Joints
from hotpolicy.robots.servo.sensing import Sensing
from hotpolicy.robots.servo.stored import read_positions, require_calibration, require_models, store_calibration
from hotpolicy.robots.servo.tables import ArmTable
from hotpolicy.robots.servo.torque import Torque
from hotpolicy.robots.servo.watchdog import Watchdogs
from hotpolicy.runtime.errors import BusLost, LimitViolation, ServoSilent
from hotpolicy.runtime.messages import RobotSpec

log = logging.getLogger(__name__)

ATTEMPTS = 3  # to hold


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
        self._joints = Joints(table, calibration)
        self.spec = spec or self._joints.spec()
        self._joints.check(self.spec)
        self._goal = table.family.registers["goal_position"]
        self._watchdogs = Watchdogs(bus, table.family)
        self._torque = Torque(bus, table, self._joints, self._watchdogs)
        self._sensing = Sensing(bus, table, self._joints, self._torque, self._watchdogs)

    @property
    def torque_on(self) -> bool:
        """All joints are known to be energised."""
        return self._torque.on

    # Connecting -------------------------------------------------------------------------------------------------------

    def verify(self, write: bool = False) -> None:
        """Compare the servos with table and calibration."""
        self._torque.on = False  # until it has been read
        require_models(self.bus, self.table)
        if self.table.leader:
            self.torque(False)  # a hand has to move it
        if write:
            store_calibration(self.bus, self.table, self._joints.filed)
        require_calibration(self.bus, self.table, self._joints.filed)
        self._joints.count_turns(read_positions(self.bus, self.table))
        self._watchdogs.distrust()
        self._torque.look()

    def reconnect(self) -> None:
        """After BusLost: open the port again by its name, and trust nothing from before."""
        self.bus.open()
        self._sensing.forget()
        self.verify()

    # Driving ----------------------------------------------------------------------------------------------------------

    def read(self) -> ArmState:
        """Positions of all joints; of a silent one the last known. Raises ServoSilent when there is none yet."""
        return self._sensing.read()

    def send(self, positions: np.ndarray) -> None:
        """One packet with the goals of all joints, cut to the calibrated ticks. Raises LimitViolation, and sends
        nothing, when the arm is released: a goal would switch its torque on."""
        if self.torque_on and self._watchdogs.due:
            self.read()  # a servo that has stopped by itself would not take the goal
        if not self.torque_on:
            raise LimitViolation(f"{self.bus.port}: expected torque on before a goal, it is off; nothing was sent")
        goals = zip(self._joints.driven, positions, strict=True)
        self._send_ticks({servo: self._joints.from_value(servo, float(value)) for servo, value in goals})

    def hold(self) -> None:
        """Goal := present, and read back: nobody answers the packet with the goals, and an arm whose packet was lost
        goes on. Joints that do not answer keep the goal they have; a released arm stays released."""
        if not self.torque_on:
            return
        self.read()
        ticks, silent = self._sensing.ticks, self._sensing.silent
        left = {servo: ticks[servo] for servo in self._joints.driven if servo not in silent}
        for _ in range(ATTEMPTS):
            if not left or not self.torque_on:
                return
            self._send_ticks(left)
            replies = self.bus.sync_read(tuple(left), self._goal.address, self._goal.size).by_id
            taken = {servo for servo, r in replies.items() if r.data == self._joints.goal_bytes(servo, left[servo])}
            left = {servo: ticks for servo, ticks in left.items() if servo not in taken}
        if left:
            log.warning("%s: no sign that %s holds", self.bus.port, ", ".join(map(self._joints.name, left)))

    # Switching --------------------------------------------------------------------------------------------------------

    def torque(self, on: bool) -> None:
        """On: the present position becomes the goal, then torque, then both are read back. Raises LimitViolation when a
        joint is too far outside its range, ServoSilent when one does not answer, ServoFault when one does not obey.
        Off: every joint is tried before ServoFault names those not seen to be off."""
        if on:
            self._torque.switch_on()
        else:
            self._torque.switch_off()

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

    def _disarm(self) -> None:
        """The arm is left holding, and whoever drives it next may not know of the servos' watchdogs."""
        for servo in self._joints.ids:
            with suppress(ServoSilent):
                self._watchdogs.disarm(servo)

    def _send_ticks(self, ticks: Mapping[int, int]) -> None:
        goals = {servo: self._joints.goal_bytes(servo, at) for servo, at in ticks.items()}
        self.bus.sync_write(self._goal.address, goals)
