"""What the servos themselves say: their models, and their calibration, compared with a file or written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hotpolicy.robots.calibration import Calibration, JointCalibration, differences, whose
from hotpolicy.robots.servo.bus import ServoBus
from hotpolicy.robots.servo.tables import ArmTable, ServoJoint
from hotpolicy.runtime.errors import CalibrationError, ServoFault, ServoSilent, WrongServo

STORED = {  # field of a calibration file -> register of the servo
    "homing_offset": "position_offset",
    "range_min": "min_position",
    "range_max": "max_position",
}
REVERSED = 1  # bit of register drive_mode, in servos that have one


def require_models(bus: ServoBus, table: ArmTable) -> None:
    """Raises WrongServo when the servos on the bus are not those of the table: what was expected, and what there is."""
    model = table.family.registers["model"]
    expected = {joint.id: joint.model for joint in table.servos}
    replies = bus.sync_read(tuple(expected), model.address, model.size)
    found = {servo: model.decode(reply.data) for servo, reply in replies.by_id.items()}
    if found != expected:
        found = bus.scan() | found
        raise WrongServo(f"{bus.port}: expected {_list(table, expected)}; found {_list(table, found)}")


def read_register(bus: ServoBus, table: ArmTable, name: str) -> dict[str, int]:
    """What register `name` holds in every servo, by joint. Raises ServoSilent naming the joint that does not answer."""
    names, register = {joint.id: joint.name for joint in table.servos}, table.family.registers[name]
    replies = bus.sync_read(tuple(names), register.address, register.size)
    if replies.missing:
        silent = replies.missing[0]
        raise ServoSilent(f"{bus.port}: joint {names[silent]} (servo {silent}): expected {name}, got no answer")
    return {names[servo]: register.decode(reply.data) for servo, reply in replies.by_id.items()}


def read_positions(bus: ServoBus, table: ArmTable) -> dict[int, int]:
    """What all servos say of their position, ticks by id. Raises ServoSilent."""
    by_name = read_register(bus, table, "present_position")
    return {row.id: by_name[row.name] for row in table.servos}


def select_calibration(table: ArmTable, calibration: Calibration) -> Calibration:
    """The table's servos of a calibration file. Raises CalibrationError for one that is missing, has another servo, or
    has numbers that no servo holds."""
    family = table.family
    holds = {
        "homing_offset": (-family.offset_limit, family.offset_limit),
        "range_min": (0, family.position_limit),
        "range_max": (0, family.position_limit),
    }
    chosen = {}
    for joint in table.servos:
        if joint.name not in calibration:
            raise CalibrationError(f"joint {joint.name}: expected in the calibration, found {', '.join(calibration)}")
        entry = calibration[joint.name]
        if entry.id != joint.id:
            raise CalibrationError(f"joint {joint.name}: expected servo {joint.id}, the calibration says {entry.id}")
        for field, (low, high) in holds.items():
            if not low <= (value := getattr(entry, field)) <= high:
                raise CalibrationError(f"joint {joint.name}: {field}: expected {low}..{high}, got {value}: recalibrate")
        chosen[joint.name] = entry
    return chosen


def as_counted(table: ArmTable, calibration: Calibration) -> Calibration:
    """The calibration for the ticks that come from the bus: a servo that runs backwards itself has turned them round
    already."""
    if not table.family.drive_mode_in_servo:
        return calibration
    return {name: replace(entry, drive_mode=0) for name, entry in calibration.items()}


def stored_calibration(bus: ServoBus, table: ArmTable) -> Calibration:
    """What the servos hold. Those that know no drive mode have 0 here."""
    values = {field: read_register(bus, table, register) for field, register in STORED.items()}
    modes = read_register(bus, table, "drive_mode") if table.family.drive_mode_in_servo else {}
    return {
        joint.name: JointCalibration(
            joint.id, modes.get(joint.name, 0) & REVERSED, **{field: of[joint.name] for field, of in values.items()}
        )
        for joint in table.servos
    }


def store_calibration(bus: ServoBus, table: ArmTable, calibration: Calibration) -> None:
    """Write it to the servos, to stay. Raises CalibrationError when torque is on: a new offset would move the arm."""
    on = [name for name, value in read_register(bus, table, "torque").items() if value]
    if on:
        raise CalibrationError(f"{bus.port}: expected a released arm to write its calibration, torque is on at {on[0]}")
    modes = read_register(bus, table, "drive_mode") if table.family.drive_mode_in_servo else {}
    for name, joint in calibration.items():
        numbers = {register: getattr(joint, field) for field, register in STORED.items()}
        if name in modes:
            numbers["drive_mode"] = modes[name] & ~REVERSED | joint.drive_mode
        write_stored(bus, table, joint.id, numbers)


def write_stored(bus: ServoBus, table: ArmTable, servo: int, numbers: Mapping[str, int]) -> None:
    """Write registers of one released servo so that they outlive a power cycle. Raises ServoSilent."""
    for part in (table.family.unlock or {}, numbers, table.family.lock or {}):
        for name, value in part.items():
            register = table.family.registers[name]
            bus.write(servo, register.address, register.encode(value))


def require_calibration(bus: ServoBus, table: ArmTable, calibration: Calibration) -> None:
    """Raises CalibrationError naming the first joint whose servo differs from the file, and both values."""
    stored = stored_calibration(bus, table)
    texts = differences(calibration, stored)
    if table.family.drive_mode_in_servo:
        texts += [
            f"joint {name}: drive_mode is {joint.drive_mode} in the file and {stored[name].drive_mode} in the servo"
            for name, joint in calibration.items()
            if joint.drive_mode != stored[name].drive_mode
        ]
    if texts:
        more = f" (and {len(texts) - 1} more)" if len(texts) > 1 else ""
        advice = f"{_whose(stored)}give this arm's own file, or write it to the servos: hotpolicy calibrate --push"
        raise CalibrationError(f"{bus.port}: {texts[0]}{more}; {advice}")


def _whose(stored: Calibration) -> str:
    """Two arms of a kind on each other's ports are the usual reason."""
    known = whose(stored)
    return f"this port has the arm calibrated as {' or '.join(f.stem for f in known)} ({known[0]}): " if known else ""


def apply_settings(bus: ServoBus, table: ArmTable, joint: ServoJoint) -> None:
    """Make a released servo hold what its row says, writing only what differs. Raises ServoSilent, and ServoFault for
    what the servo does not take."""
    for name, value in joint.settings:
        register = table.family.registers[name]
        if register.decode(bus.read(joint.id, register.address, register.size).data) != value:
            write_stored(bus, table, joint.id, {name: value})
    for name, value in joint.settings:  # only now: changing one may have reset another
        register = table.family.registers[name]
        found = register.decode(bus.read(joint.id, register.address, register.size).data)
        if found != value:
            raise ServoFault(
                f"{bus.port}: joint {joint.name} (servo {joint.id}): expected {name} {value}, it holds {found}"
            )


def _list(table: ArmTable, models: Mapping[int, int]) -> str:
    describe = table.family.describe
    return ", ".join(f"{servo}: {describe(model)}" for servo, model in sorted(models.items())) or "no servo at all"
