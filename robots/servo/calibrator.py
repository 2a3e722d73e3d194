"""Calibrating an arm, step by step: middle of each joint, then how far a hand can turn it. No terminal in here.

The numbers are LeRobot's: with its offset a servo reads half a turn in the middle of its joint, and the two ends are
what was seen while the arm was moved. A joint that turns all the way round gets the whole turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hotpolicy.robots.calibration import Calibration, JointCalibration
from hotpolicy.robots.servo.bus import ServoBus
from hotpolicy.robots.servo.stored import (
    REVERSED,
    apply_settings,
    read_register,
    require_models,
    store_calibration,
    write_stored,
)
from hotpolicy.robots.servo.tables import ArmTable
from hotpolicy.runtime.errors import CalibrationError, ServoFault

HALF_TURN = 2047  # ticks; LeRobot halves resolution - 1
LEAST_RANGE = 200  # ticks, 18 deg: a joint that was moved less was not moved from end to end


@dataclass(slots=True)
class Seen:
    """One joint while it is moved by hand, ticks."""

    low: int
    now: int
    high: int


class Calibrator:
    """`begin`, then the hand puts every joint in its middle; `centre`, then the hand moves every joint from end to end
    while `watch` is called again and again; `finish`. Until `finish` returns, the servos hold half a calibration: an
    arm that is left there is refused by `connect`, by name."""

    def __init__(self, bus: ServoBus, table: ArmTable):
        self.bus = bus
        self.table = table
        self.seen: dict[str, Seen] = {}
        self._offsets: Mapping[str, int] = {}
        self._whole_turn = {joint.name for joint in table.servos if joint.whole_turn}

    def check(self) -> None:
        """That this arm is on the bus. Raises WrongServo with what is expected and what there is."""
        require_models(self.bus, self.table)

    def begin(self) -> None:
        """Release the arm, which sinks unless it is held, and set its servos up as its table says. Raises ServoSilent,
        ServoFault."""
        torque = self.table.family.registers["torque"]
        for joint in self.table.servos:
            self.bus.write(joint.id, torque.address, torque.encode(0))
        on = [name for name, value in read_register(self.bus, self.table, "torque").items() if value]
        if on:
            raise ServoFault(f"{self.bus.port}: expected a released arm, torque stays on at {', '.join(on)}")
        for joint in self.table.servos:
            apply_settings(self.bus, self.table, joint)

    def centre(self) -> None:
        """Take the present pose as the middle of every joint. Raises CalibrationError naming a joint whose servo cannot
        hold such an offset."""
        family = self.table.family
        modes = read_register(self.bus, self.table, "drive_mode") if family.drive_mode_in_servo else {}
        for joint in self.table.servos:
            numbers = {"position_offset": 0, "min_position": 0, "max_position": family.position_limit}
            if joint.name in modes:
                numbers["drive_mode"] = modes[joint.name] & ~REVERSED | joint.drive_mode
            write_stored(self.bus, self.table, joint.id, numbers)
        actual = read_register(self.bus, self.table, "present_position")
        sign = 1 if family.offset_adds else -1
        offsets = {name: sign * (HALF_TURN - at) for name, at in actual.items()}
        for name, offset in offsets.items():
            if abs(offset) > family.offset_limit:
                raise CalibrationError(
                    f"joint {name}: expected within {family.offset_limit} ticks of the servo's own middle, it is at "
                    f"{actual[name]}: turn it a little towards its middle and try again; if it is there, its horn sits "
                    "half a turn off"
                )
        for joint in self.table.servos:
            write_stored(self.bus, self.table, joint.id, {"position_offset": offsets[joint.name]})
        self._offsets = offsets
        present = read_register(self.bus, self.table, "present_position")
        self.seen = {name: Seen(at, at, at) for name, at in present.items()}

    def watch(self) -> Mapping[str, Seen]:
        """Read the joints once more and widen what was seen of them. Call it many times a second."""
        if not self._offsets:
            raise CalibrationError("expected the middle of the joints first")
        for name, at in read_register(self.bus, self.table, "present_position").items():
            seen = self.seen[name]
            seen.low, seen.now, seen.high = min(seen.low, at), at, max(seen.high, at)
        return self.seen

    def unmoved(self) -> list[str]:
        """Joints that were not moved far enough yet."""
        return [n for n, seen in self.seen.items() if n not in self._whole_turn and seen.high - seen.low < LEAST_RANGE]

    def finish(self) -> Calibration:
        """Write the calibration to the servos, and return it for the file. Raises CalibrationError naming the joints
        that were not moved, or whose range leaves the turn."""
        if still := self.unmoved():
            raise CalibrationError(f"expected every joint moved from end to end, these were not: {', '.join(still)}")
        limit = self.table.family.position_limit
        calibration = {}
        for joint in self.table.servos:
            seen = self.seen[joint.name]
            low, high = (0, limit) if joint.whole_turn else (seen.low, seen.high)
            if not 0 <= low < high <= limit:
                raise CalibrationError(
                    f"joint {joint.name}: expected ticks within 0..{limit}, it went from {low} to {high}: its middle "
                    "was not in the middle; begin again"
                )
            calibration[joint.name] = JointCalibration(joint.id, joint.drive_mode, self._offsets[joint.name], low, high)
        store_calibration(self.bus, self.table, calibration)
        return calibration
