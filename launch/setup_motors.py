"""`hotpolicy setup-motors | find-port`: an arm out of its box gets ids, and a port gets a name."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from hotpolicy.runtime.errors import BusLost, ConfigError, HotpolicyError, WrongServo

if TYPE_CHECKING:
    from hotpolicy.robots.servo.tables import ArmTable

LOOK_S = 0.1  # between two looks at the keys, or at the ports
UNPLUG_S = 60.0  # time to find the cable and pull it
ALONE = "Plug {joint}'s servo, and no other, into the adapter. Enter: go on; s: it is done already; escape: give up."
ALL = "Now connect all servos to one another and to the adapter, then press enter."

Keys = Callable[[], list[str]]  # the keys pressed since the last call; never waits
Say = Callable[[str], object]


def setup_motors(
    arm: Annotated[str, typer.Option(help="Kind of arm, such as so101_follower.")],
    port: Annotated[str, typer.Option(help="The adapter's serial port; `hotpolicy find-port` finds it.")],
    baudrate: Annotated[int, typer.Option(help="Bits per second the servos get.")] = 1_000_000,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing: compare what is on the bus with what the arm needs.")
    ] = False,
) -> None:
    """Give an arm's new servos their ids and baud rate, one at a time, then look at the whole arm."""
    from hotpolicy.robots.arms.catalogue import arm_table
    from hotpolicy.robots.teleop.terminal import Terminal

    table = arm_table(arm)
    if not check:
        with Terminal() as terminal:
            guide(port, table, baudrate, terminal.pressed)
    require_whole(port, table, baudrate)


def guide(port: str, table: ArmTable, baudrate: int, keys: Keys, say: Say = typer.echo) -> None:
    """The conversation, from the gripper to the base, as the cables run. What went wrong with a servo is said, and that
    servo is asked for again. Raises ConfigError when escape is pressed."""
    from hotpolicy.robots.servo.setup import find_one, set_up

    for row in reversed(table.servos):
        say(ALONE.format(joint=row.name))
        while _answer(keys) == "enter":
            try:
                set_up(port, find_one(port, table.family), table, row, baudrate)
                say(f"{row.name}: servo {row.id} at {baudrate} bit/s")
                break
            except BusLost:
                raise
            except HotpolicyError as error:  # policy: the person mends it and presses enter again
                say(str(error))
    say(ALL)
    _answer(keys)


def require_whole(port: str, table: ArmTable, baudrate: int, say: Say = typer.echo) -> None:
    """Scan every baud rate and compare. Raises WrongServo when the arm is not whole; each line is said before."""
    from hotpolicy.robots.servo.scan import compare, scan

    found = scan(port, (table.family,), first=False)
    for servo in found:
        say(f"found {servo}")
    if texts := compare(table, found, baudrate):
        for text in texts:
            say(text)
        raise WrongServo(f"{port}: expected the {len(table.servos)} servos of a {table.name}: {len(texts)} not right")
    say(f"{port}: all {len(table.servos)} servos of a {table.name}")


def find_port(
    seconds: Annotated[float, typer.Option(help="How long to wait for a cable to be pulled, s.")] = UNPLUG_S,
) -> None:
    """Find an arm's serial port by unplugging its cable."""
    from hotpolicy.robots.servo.ports import candidates

    before = set(candidates())
    if not before:
        raise ConfigError("find-port: expected the arm to be plugged in, there is no serial port at all")
    typer.echo("Serial ports: " + ", ".join(sorted(before)))
    typer.echo("Now unplug the arm's USB cable.")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if gone := before - set(candidates()):
            typer.echo("That was " + " and ".join(sorted(gone)) + ". Plug it in again.")
            return
        time.sleep(LOOK_S)
    raise ConfigError(f"find-port: expected a cable to be unplugged within {seconds:g} s, all ports stayed")


def _answer(keys: Keys) -> str:
    """enter or s."""
    while True:
        pressed = keys()
        if "escape" in pressed:
            raise ConfigError("setup-motors: given up; servos that were set up stay so, and it can be begun again")
        for key in ("enter", "s"):
            if key in pressed:
                return key
        time.sleep(LOOK_S)
