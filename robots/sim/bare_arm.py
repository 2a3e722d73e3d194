"""Virtual arms without a world: servos on pseudo-terminals, each joint going straight to its goal. Any table will do.

There is no table, no camera and no gravity here; `virtual_arm.py` has these, for the SO-101. What a driver sees of the
servos is the same.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from select import select
from typing import Any

from hotpolicy.robots.calibration import Calibration
from hotpolicy.robots.servo.dynamixel import DYNAMIXEL
from hotpolicy.robots.servo.tables import ArmTable
from hotpolicy.robots.sim.dynamixel import VirtualDynamixels
from hotpolicy.robots.sim.faults import Fault
from hotpolicy.robots.sim.pty import VirtualPort
from hotpolicy.robots.sim.servos import VirtualBus
from hotpolicy.robots.sim.wire import VirtualWire
from hotpolicy.runtime.clock import now

SPEED = 2000.0  # ticks/s, half a turn
STEP_S = 5e-3  # the joints move so often


@dataclass(frozen=True, slots=True)
class BareArm:
    table: ArmTable
    calibration: Calibration  # as the servos hold it
    link: Path  # a stable name for the serial port
    baud: int | None = None  # bytes take as long as at this rate; None: no time
    faults: Sequence[Fault] = ()  # trouble from the start


def wire_of(table: ArmTable, calibration: Calibration) -> VirtualWire[Any, Any]:
    """The servos of an arm, each joint in the middle of its range."""
    if table.family is DYNAMIXEL:
        return VirtualDynamixels.from_table(table, calibration)
    return VirtualBus.from_calibration({row.name: calibration[row.name] for row in table.servos})


def serve_bare_arms(arms: Sequence[BareArm], ready: Callable[[str], object] = print) -> None:
    """Answer on all ports until SIGTERM or SIGINT; `ready` is called with the path of each once it can be opened."""
    running = True

    def stop(*_: object) -> None:
        nonlocal running
        running = False

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    wires, ports = [], []
    try:
        for arm in arms:
            wire = wire_of(arm.table, arm.calibration)
            wire.baud = arm.baud
            for fault in arm.faults:
                wire.inject(fault.kind, fault.id, fault.times, fault.delay_s)
            wires.append(wire)
            ports.append(VirtualPort(arm.link))
        for port in ports:
            ready(port.path)
        moved_at = now()
        while running:
            select([port.master for port in ports if port.master >= 0], [], [], STEP_S)
            for port, wire in zip(ports, wires, strict=True):
                port.pump(wire)
            elapsed, moved_at = now() - moved_at, now()
            for wire in wires:
                for servo in wire.servos:
                    servo.advance(SPEED * elapsed)
    finally:
        for port in ports:
            port.close()
