"""Giving a new servo its id and baud rate, one servo at a time. No terminal in here.

All servos leave the factory with the same id, so each must be alone on the bus while it gets its own.
"""

from __future__ import annotations

from contextlib import suppress

from hotpolicy.robots.servo.bus import ServoBus
from hotpolicy.robots.servo.family import Family
from hotpolicy.robots.servo.scan import MARGIN_MS, Found, Progress, patience, scan
from hotpolicy.robots.servo.tables import ArmTable, ServoJoint
from hotpolicy.runtime.errors import BadRequest, ServoFault, ServoSilent, WrongServo


def find_one(port: str, family: Family, *, margin_ms: float = MARGIN_MS, progress: Progress | None = None) -> Found:
    """The only servo on the bus, at whatever baud rate. Raises WrongServo when there is none, or more than one."""
    found = scan(port, (family,), first=True, margin_ms=margin_ms, progress=progress)
    if not found:
        raise WrongServo(f"{port}: expected one {family.name} servo, none answered at any baud rate: cable? power?")
    if len(found) > 1:
        raise WrongServo(f"{port}: expected one servo alone on the bus, found {'; '.join(map(str, found))}: unplug all "
                         "but one")  # fmt: skip
    return found[0]


def set_up(
    port: str, found: Found, table: ArmTable, row: ServoJoint, baud: int = 1_000_000, *, margin_ms: float = MARGIN_MS
) -> None:
    """Make the servo that `find_one` found the one of `row`: its id, then the baud rate, then read back.

    Raises WrongServo for another model, and writes nothing then; ServoFault when the servo does not hold what it was
    given; ServoSilent when it does not answer at the end. It can be repeated after each of them.
    """
    if found.family is not table.family or found.model != row.model:
        raise WrongServo(
            f"{port}: joint {row.name}: expected {table.family.describe(row.model)}, found {found}: is this the right "
            "servo?"
        )
    key = _baud_key(table.family, baud)
    with ServoBus(port, patience(found.baud, margin_ms), table.family.protocol()) as bus:
        _write(bus, table.family, found.id, "torque", 0)
        for name, value in (table.family.unlock or {}).items():
            _write(bus, table.family, found.id, name, value)
        # The answer to these two may come under the old name or the new one, or at either rate: they are read back.
        with suppress(ServoSilent):
            _write(bus, table.family, found.id, "id", row.id)
        with suppress(ServoSilent):
            _write(bus, table.family, row.id, "baud_rate", key)
    with ServoBus(port, patience(baud, margin_ms), table.family.protocol()) as bus:
        for name, value in (table.family.lock or {}).items():
            _write(bus, table.family, row.id, name, value)
        for name, value in {"model": row.model, "id": row.id, "baud_rate": key}.items():
            register = table.family.registers[name]
            held = register.decode(bus.read(row.id, register.address, register.size).data)
            if held != value:
                raise ServoFault(f"{port}: joint {row.name}: expected {name} {value}, the servo holds {held}")


def _baud_key(family: Family, baud: int) -> int:
    """What register baud_rate holds for `baud`. Raises BadRequest for a rate the family does not have."""
    for key, rate in family.baud_rates.items():
        if rate == baud:
            return key
    raise BadRequest(f"baud rate: expected one of {', '.join(map(str, family.baud_rates.values()))}, got {baud}")


def _write(bus: ServoBus, family: Family, servo: int, name: str, value: int) -> None:
    register = family.registers[name]
    bus.write(servo, register.address, register.encode(value))
