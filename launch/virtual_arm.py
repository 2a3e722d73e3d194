"""`hotpolicy virtual-arm`: a simulated arm on a serial port of its own, for programs that know only real ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotpolicy.launch.options import ROBOT, Robot
from hotpolicy.robots.sim.faults import KINDS, Fault
from hotpolicy.runtime.errors import ConfigError

if TYPE_CHECKING:
    from hotpolicy.launch.profile import Profile


def virtual_arm(
    robot: Robot = ROBOT,
    port_link: Annotated[
        Path | None, typer.Option(help="Where to put a link to the serial port. Default: the profile's port.")
    ] = None,
    world: Annotated[
        str | None, typer.Option(help="Socket for camera, reset and referee. Default: the profile's world.")
    ] = None,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="Run by the clock; otherwise time passes only tick by tick, 0.1 s each.")
    ] = False,
    paced: Annotated[
        bool, typer.Option("--paced", help="Let bytes take as long as on a wire of 1 Mbit/s; otherwise none at all.")
    ] = False,
    fault: Annotated[
        list[str] | None,
        typer.Option(help=f"KIND[:SERVO[:SECONDS]], as often as you like: {', '.join(KINDS)}. SERVO 0 is all of them."),
    ] = None,
) -> None:
    """Run a simulated SO-101 until Ctrl-C: six servos that speak Feetech's protocol, a table, cubes and a camera.

    A profile without a world socket gives the servos of its arm alone, of whatever kind, running by the clock.
    """
    from hotpolicy.launch.profile_file import load_profile
    from hotpolicy.robots.sim.virtual_arm import VirtualArmConfig, serve_virtual_arm

    profile = load_profile(robot)
    endpoint = world or profile.world
    if endpoint is None:
        serve_bare(profile, port_link, paced, tuple(map(_fault, fault or ())))
        return
    sizes = {(camera.height, camera.width) for camera in profile.cameras if camera.source == "world"}
    size = next(iter(sizes), (64, 64))
    if len(sizes) > 1 or size[0] != size[1]:
        raise ConfigError(f"{profile.file}: cameras: the virtual arm has one square camera, got {sorted(sizes)}")
    config = VirtualArmConfig(
        world=endpoint,
        link=port_link or Path(profile.arms[0].port),
        paced=paced,
        realtime=realtime,
        image_size=size[0],
        faults=tuple(map(_fault, fault or ())),
    )
    serve_virtual_arm(config, ready=lambda path: typer.echo(f"ready: {path}, world {endpoint}"))


def serve_bare(profile: Profile, port_link: Path | None, paced: bool, faults: tuple[Fault, ...]) -> None:
    """The servos of the profile's arm, or of both, each on a port of its own, until Ctrl-C."""
    from hotpolicy.robots.arms.catalogue import ARMS
    from hotpolicy.robots.calibration import read_calibration
    from hotpolicy.robots.sim.bare_arm import BareArm, serve_bare_arms

    if len(profile.arms) > 1 and port_link is not None:
        raise ConfigError("--port-link: one name cannot stand for the ports of two arms; give them in the profile")
    arms = []
    for shown in profile.arms:
        arm = replace(shown, port=str(port_link)) if port_link else shown
        if arm.port.startswith("/dev/"):
            raise ConfigError(f"{profile.file}: port: {arm.port} is a place for real arms; give --port-link")
        calibration = read_calibration(arm.calibration)
        arms.append(BareArm(ARMS[arm.kind], calibration, Path(arm.port), arm.baudrate if paced else None, faults))
    serve_bare_arms(arms, ready=lambda path: typer.echo(f"ready: {path}"))


def virtual_profile(folder: Path, number: int, endpoint: str, control: str) -> Profile:
    """The shipped virtual arm, with port and sockets of its own in `folder`, so that several can run at once."""
    from hotpolicy.launch.profile_file import load_profile

    shipped = load_profile("virtual_so101")
    return replace(
        shipped,
        arms=(replace(shipped.arms[0], port=str(folder / f"arm{number}")),),
        world=f"ipc://{folder}/arm{number}.world",
        endpoint=endpoint,
        control=control,
    )


def _fault(text: str) -> Fault:
    kind, servo, seconds, *more = [*text.split(":"), "", ""][: max(3, text.count(":") + 1)]
    try:
        if kind not in KINDS or more:
            raise ValueError(kind)
        return Fault(kind, int(servo or 0) or None, None, float(seconds or 0))
    except ValueError as error:
        raise ConfigError(
            f"--fault: expected KIND[:SERVO[:SECONDS]] with a kind of {', '.join(KINDS)}, got {text!r}"
        ) from error
