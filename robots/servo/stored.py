"""The calibration that lives in the servos themselves: read, compared with a file, and written."""

from __future__ import annotations

from hotpolicy.robots.calibration import Calibration, JointCalibration, differences
from hotpolicy.robots.servo.bus import ServoBus
from hotpolicy.robots.servo.registers import STS3215, Register
from hotpolicy.robots.servo.tables import ArmTable
from hotpolicy.runtime.errors import CalibrationError, ServoSilent

LOCK = STS3215["lock"]
TORQUE = STS3215["torque"]
STORED = {  # field of a calibration file -> register of the servo
    "homing_offset": STS3215["position_offset"],
    "range_min": STS3215["min_position"],
    "range_max": STS3215["max_position"],
}
HOLDS = {"homing_offset": (-2047, 2047), "range_min": (0, 4095), "range_max": (0, 4095)}  # ticks


def read_register(bus: ServoBus, table: ArmTable, register: Register) -> dict[str, int]:
    """The register's value in every servo, by joint name. Raises ServoSilent naming the joint that does not answer."""
    names = {joint.id: joint.name for joint in table.joints}
    replies = bus.sync_read(tuple(names), register.address, register.size)
    if replies.missing:
        silent = replies.missing[0]
        raise ServoSilent(
            f"{bus.port}: joint {names[silent]} (servo {silent}): expected {register.name}, got no answer"
        )
    return {names[servo]: register.decode(reply.data) for servo, reply in replies.by_id.items()}


def select_calibration(table: ArmTable, calibration: Calibration) -> Calibration:
    """The table's joints of a calibration file. Raises CalibrationError for one that is missing, has another servo, or
    has numbers that no servo holds."""
    chosen = {}
    for joint in table.joints:
        if joint.name not in calibration:
            raise CalibrationError(f"joint {joint.name}: expected in the calibration, found {', '.join(calibration)}")
        entry = chosen[joint.name] = calibration[joint.name]
        if entry.id != joint.id:
            raise CalibrationError(f"joint {joint.name}: expected servo {joint.id}, the calibration says {entry.id}")
        for field, (low, high) in {
            "homing_offset": (-2047, 2047),
            "range_min": (0, 4095),
            "range_max": (0, 4095),
        }.items():
            if not low <= (value := getattr(entry, field)) <= high:
                raise CalibrationError(f"joint {joint.name}: {field}: expected {low}..{high}, got {value}: recalibrate")
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
    on = [name for name, value in read_register(bus, table, TORQUE).items() if value]
    if on:
        raise CalibrationError(f"{bus.port}: expected a released arm to write its calibration, torque is on at {on[0]}")
    for joint in calibration.values():
        bus.write(joint.id, LOCK.address, LOCK.encode(0))
        for field, register in STORED.items():
            bus.write(joint.id, register.address, register.encode(getattr(joint, field)))
        bus.write(joint.id, LOCK.address, LOCK.encode(1))


def require_calibration(bus: ServoBus, table: ArmTable, calibration: Calibration) -> None:
    """Raises CalibrationError naming the first joint whose servo differs from the file, and both values."""
    texts = differences(calibration, stored_calibration(bus, table))
    if texts:
        more = f" (and {len(texts) - 1} more)" if len(texts) > 1 else ""
        raise CalibrationError(f"{bus.port}: {texts[0]}{more}; give this arm's own file, or write it to the servos")
