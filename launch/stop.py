"""`hotpolicy stop`: the emergency stop from another terminal, and the only thing that clears one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hotpolicy.launch.options import Robot
from hotpolicy.runtime.errors import RobotError, StopUnconfirmed

if TYPE_CHECKING:
    from hotpolicy.launch.profile import ArmProfile


def stop(
    robot: Robot,
    clear: Annotated[bool, typer.Option("--clear", help="The arm was looked at and may move again.")] = False,
    reason: Annotated[str, typer.Option(help="Why; it is shown until the stop is cleared.")] = "hotpolicy stop",
) -> None:
    """Release a robot's arm at once, whoever drives it, and read back that its torque is off. It stays stopped until
    `--clear`. Exit code 0: confirmed; 3: torque may still be on, cut the power."""
    from hotpolicy.launch.profile_file import load_profile
    from hotpolicy.robots.stop import FileLatch, ask_stop

    profile = load_profile(robot)
    latch = FileLatch(profile.identity)
    if clear:
        before = latch.clear()
        typer.echo(f"cleared: {before}" if before else f"{profile.name} was not stopped")
        return
    latch.set(reason)  # first: a program that starts now finds it
    if not ask_stop(profile.identity, reason):
        if not profile.arms:
            raise StopUnconfirmed(f"{profile.name}: no program drives it and it has no bus of its own: cut the power")
        for arm in profile.arms:
            release(arm)
    typer.echo(f"{profile.name} is stopped: its torque was read back as off. When it is safe: hotpolicy stop --clear")


def release(profile: ArmProfile) -> None:
    """Switch an arm off that no program of ours drives, whatever its calibration. Raises StopUnconfirmed."""
    from hotpolicy.robots.arms.catalogue import ARMS
    from hotpolicy.robots.calibration import read_calibration
    from hotpolicy.robots.servo.arm import ServoArm
    from hotpolicy.robots.servo.bus import ServoBus, Timing

    table = ARMS[profile.kind]
    bus = ServoBus(profile.port, Timing(baud=profile.baudrate, budget_ms=200.0), table.family.protocol())
    try:
        with bus:
            ServoArm(bus, table, read_calibration(profile.calibration), None).torque(False)
    except RobotError as error:
        raise StopUnconfirmed(f"{profile.port}: torque may still be on, cut the power: {error}") from error
