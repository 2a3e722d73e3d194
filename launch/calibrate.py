"""`hotpolicy calibrate`: a guided calibration in the terminal, with the joints' live values.

The only place that waits for a person: nothing that serves, records or drives an arm ever asks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotpolicy.runtime.errors import CalibrationError, ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from hotpolicy.robots.calibration import Calibration
    from hotpolicy.robots.servo.calibrator import Calibrator, Seen

LOOK_S = 0.05  # between two looks at the joints
HOLD_IT = "The arm will go limp. Hold it, then press enter."
MIDDLE = "Put every joint in the middle of its range, then press enter."
ENDS = "Move every joint slowly from end to end, then press enter."

Keys = Callable[[], list[str]]  # the keys pressed since the last call; never waits


def calibrate(
    arm: Annotated[str, typer.Option(help="Kind of arm, such as so101_follower or so101_leader.")],
    port: Annotated[str, typer.Option(help="Its serial port, best by its stable name in /dev/serial/by-id.")],
    id: Annotated[str, typer.Option(help="The name you give this arm; the file is called so.")],
    out: Annotated[Path | None, typer.Option(help="File to write instead of the one where LeRobot would look.")] = None,
    baudrate: Annotated[int, typer.Option(help="Bits per second on the bus.")] = 1_000_000,
    force: Annotated[bool, typer.Option("--force", help="Write over a calibration that is there.")] = False,
    push: Annotated[
        bool, typer.Option("--push", help="Nothing by hand: write the file that is there to the released servos.")
    ] = False,
) -> None:
    """Calibrate an arm by hand, step by step. The numbers go to the servos and to a file that LeRobot reads too."""
    from hotpolicy.robots.arms.catalogue import arm_table
    from hotpolicy.robots.calibration import calibration_root, load_calibration, write_calibration
    from hotpolicy.robots.servo.arm import connect
    from hotpolicy.robots.servo.bus import ServoBus, Timing
    from hotpolicy.robots.servo.calibrator import Calibrator
    from hotpolicy.robots.teleop.terminal import Terminal

    table = arm_table(arm)
    kind = "teleoperators" if table.leader else "robots"
    if push:
        calibration = load_calibration(out or id, table.calibration_names, kind)
        connect(port, calibration, table=table, timing=Timing(baud=baudrate), write=True).bus.close()
        typer.echo(f"written to the servos: {out or id}")
        return
    file = out or calibration_root() / kind / table.calibration_names[0] / f"{id}.json"
    if file.exists() and not force:
        raise ConfigError(f"id: {file} is there already; give another id, or --force to write over it")
    with ServoBus(port, Timing(baud=baudrate), table.family.protocol()) as bus, Terminal() as terminal:
        calibrator = Calibrator(bus, table)
        calibrator.check()
        calibration = guide(calibrator, terminal.pressed)
    write_calibration(file, calibration)
    typer.echo(f"written to the servos and to {file}")


def guide(calibrator: Calibrator, keys: Keys, say: Callable[[str], None] = typer.echo) -> Calibration:
    """The whole conversation. Raises CalibrationError when escape is pressed; once the middle was taken, the servos are
    left without a calibration then."""
    from rich.console import Console
    from rich.live import Live

    say(f"{HOLD_IT} Escape gives up at any time.")
    _wait(keys)
    calibrator.begin()
    say(MIDDLE)
    while True:
        _wait(keys)
        try:
            calibrator.centre()
            break
        except CalibrationError as error:
            say(str(error))
    say(ENDS)
    with Live(console=Console(), transient=False, auto_refresh=False) as live:
        while True:
            live.update(joint_table(calibrator.watch(), calibrator.unmoved()), refresh=True)
            if "enter" in _pressed(keys) and not calibrator.unmoved():
                return calibrator.finish()
            time.sleep(LOOK_S)


def joint_table(seen: Mapping[str, Seen], unmoved: list[str]) -> Table:
    """What was seen so far, ticks; joints still to be moved are marked."""
    from rich.table import Table

    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("joint", "lowest", "now", "highest", ""):
        table.add_column(heading, justify="right" if heading not in ("joint", "") else "left")
    for name, joint in seen.items():
        mark = "move it" if name in unmoved else "ok"
        table.add_row(name, str(joint.low), str(joint.now), str(joint.high), mark)
    return table


def _wait(keys: Keys) -> None:
    while "enter" not in _pressed(keys):
        time.sleep(LOOK_S)


def _pressed(keys: Keys) -> list[str]:
    pressed = keys()
    if "escape" in pressed:
        raise CalibrationError("given up: the arm is released, and not calibrated if its middle was taken already")
    return pressed
