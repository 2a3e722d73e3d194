"""`hotpolicy virtual-arm`: a simulated SO-101 on a serial port of its own, for programs that know only real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hotpolicy.launch.options import ROBOT, Robot
from hotpolicy.runtime.errors import ConfigError


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
) -> None:
    """Run a simulated SO-101 until Ctrl-C: six servos that speak Feetech's protocol, a table, cubes and a camera."""
    from hotpolicy.launch.profile import load_profile
    from hotpolicy.robots.sim.virtual_arm import VirtualArmConfig, serve_virtual_arm

    profile = load_profile(robot)
    endpoint = world or profile.world
    if endpoint is None:
        raise ConfigError(f"{profile.file}: world: missing, expected the simulator's socket; or give --world")
    sizes = {(camera.height, camera.width) for camera in profile.cameras if camera.source == "world"}
    size = next(iter(sizes), (64, 64))
    if len(sizes) > 1 or size[0] != size[1]:
        raise ConfigError(f"{profile.file}: cameras: the virtual arm has one square camera, got {sorted(sizes)}")
    config = VirtualArmConfig(
        world=endpoint, link=port_link or Path(profile.port), realtime=realtime, image_size=size[0]
    )
    serve_virtual_arm(config, ready=lambda path: typer.echo(f"ready: {path}, world {endpoint}"))
