"""The calibration that lives in the servos themselves: read, compared with a file, and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hotpolicy.robots.calibration import Calibration, JointCalibration, differences
from hotpolicy.robots.servo.bus import ServoBus
from hotpolicy.robots.servo.tables import ArmTable
from hotpolicy.runtime.errors import CalibrationError, ServoSilent

STORED = {  # field of a calibration file -> register of the servo
    "homing_offset": "position_offset",
    "range_min": "min_position",
    "range_max": "max_position",
}


def read_register(bus: ServoBus, table: ArmTable, name: str) -> dict[str, int]:
    """What register `name` holds in every servo, by joint. Raises ServoSilent naming the joint that does not answer."""
    names, register = {joint.id: joint.name for joint in table.joints}, table.family.registers[name]
    replies = bus.sync_read(tuple(names), register.address, register.size)
    if replies.missing:
        silent = replies.missing[0]
        raise ServoSilent(f"{bus.port}: joint {names[silent]} (servo {silent}): expected {name}, got no answer")
    return {names[servo]: register.decode(reply.data) for servo, reply in replies.by_id.items()}


def select_calibration(table: ArmTable, calibration: Calibration) -> Calibration:
    """The table's joints of a calibration file. Raises CalibrationError for one that is missing, has another servo, or
    has numbers that no servo holds."""
    family = table.family
    holds = {
        "homing_offset": (-family.offset_limit, family.offset_limit),
        "range_min": (0, family.position_limit),
        "range_max": (0, family.position_limit),
    }
    chosen = {}
    for joint in table.joints:
        if joint.name not in calibration:
            raise CalibrationError(f"joint {joint.name}: expected in the calibration, found {', '.join(calibration)}")
        entry = calibration[joint.name]
        if entry.id != joint.id:
            raise CalibrationError(f"joint {joint.name}: expected servo {joint.id}, the calibration says {entry.id}")
        for field, (low, high) in holds.items():
            if not low <= (value := getattr(entry, field)) <= high:
                raise CalibrationError(f"joint {joint.name}: {field}: expected {low}..{high}, got {value}: recalibrate")
        # Its numbers run as the servo does; one that is turned round itself needs nothing turned round here.
        chosen[joint.name] = replace(entry, drive_mode=0) if family.drive_mode_in_servo else entry
    return chosen


def stored_calibration(bus: ServoBus, table: ArmTable) -> Calibration:
    """What the servos hold. They know no drive mode; it is 0 here."""
    values = {field: read_register(bus, table, register) for field, register in STORED.items()}
    return {
        joint.name: JointCalibration(joint.id, 0, **{field: of[joint.name] for field, of in values.items()})
        for joint in table.joints
    }


def store_calibration(bus: ServoBus, table: ArmTable, calibration: Calibration) -> None:
    """Write it to the servos, to stay. Raises CalibrationError when torque is on: a new offset would move the arm."""
    on = [name for name, value in read_register(bus, table, "torque").items() if value]
    if on:
        raise CalibrationError(f"{bus.port}: expected a released arm to write its calibration, torque is on at {on[0]}")
    for joint in calibration.values():
        numbers = {register: getattr(joint, field) for field, register in STORED.items()}
        write_stored(bus, table, joint.id, numbers)


def write_stored(bus: ServoBus, table: ArmTable, servo: int, numbers: Mapping[str, int]) -> None:
    """Write registers of one released servo so that they outlive a power cycle. Raises ServoSilent."""
    for part in (table.family.unlock or {}, numbers, table.family.lock or {}):
        for name, value in part.items():
            register = table.family.registers[name]
            bus.write(servo, register.address, register.encode(value))


def require_calibration(bus: ServoBus, table: ArmTable, calibration: Calibration) -> None:
    """Raises CalibrationError naming the first joint whose servo differs from the file, and both values."""
    texts = differences(calibration, stored_calibration(bus, table))
    if texts:
        more = f" (and {len(texts) - 1} more)" if len(texts) > 1 else ""
        raise CalibrationError(f"{bus.port}: {texts[0]}{more}; give this arm's own file, or write it to the servos")
