"""`hotpolicy doctor`: what this machine has, what is wrong with it, and for each problem what mends it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotpolicy.launch import console
from hotpolicy.launch.checkup import computer, devices, software
from hotpolicy.launch.options import STORE, AsJson, StoreFolder

if TYPE_CHECKING:
    from hotpolicy.launch.checkup.finding import Finding
    from hotpolicy.launch.profile import Profile

MARKS = {"ok": "ok", "warn": "warning", "bad": "PROBLEM"}
EXIT = {"ok": 0, "warn": 1, "bad": 2}
GUESS = (480, 640)  # height and width asked of a camera that no profile names
GUESS_HZ = 30.0


def doctor(
    robot: Annotated[
        str | None, typer.Option(help="Profile of a robot whose arm and cameras to look at; it does not move.")
    ] = None,
    store: StoreFolder = STORE,
    as_json: AsJson = False,
) -> None:
    """Look at packages, GPU, memory, disk, store, serial ports, motors and cameras. Exit code 0: all is well; 1: there
    are warnings; 2: something will not work."""
    findings = list(examine(robot, store))
    rows = [{**finding.to_dict(), "level": MARKS[finding.level]} for finding in findings]
    console.show(
        rows if not as_json else [finding.to_dict() for finding in findings], ("area", "level", "text", "mend"), as_json
    )
    raise typer.Exit(max(EXIT[finding.level] for finding in findings))


def examine(robot: str | None, store: Path) -> Iterator[Finding]:
    from hotpolicy.launch.profile_file import load_profile

    profile = load_profile(robot) if robot else None
    yield from software.look_at_versions()
    yield from computer.look_at_gpu()
    yield from computer.look_at_memory()
    yield from computer.look_at_disk(store)
    yield from software.look_at_store(store)
    if profile is None:
        yield from devices.look_at_ports()
    yield from devices.look_for_modem_manager()
    for arm in profile.arms if profile else ():
        yield from devices.look_at_motors(arm)
    yield from devices.look_at_cameras(*_cameras(profile))


def _cameras(profile: Profile | None) -> tuple[dict[str, tuple[str, int, int]], float]:
    """Those that OpenCV opens for the profile; without a profile, whatever is plugged in."""
    if profile is None:
        devices = sorted(str(device) for device in Path("/dev").glob("video*"))
        return {Path(device).name: (device, *GUESS) for device in devices}, GUESS_HZ
    real = [camera for camera in profile.cameras if camera.source not in ("world", "arm") and not camera.plugin]
    return {camera.name: (camera.source, camera.height, camera.width) for camera in real}, profile.rate_hz
