"""The serial ports of this machine: which there are, how one is found again, which program has it open."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

BY_ID = Path("/dev/serial/by-id")
DEVICES = Path("/dev")
PROCESSES = Path("/proc")
TERMINAL_MASTER = "/dev/ptmx"


def candidates() -> list[str]:
    """Serial ports of this machine by their stable names, else by the usual device names."""
    stable = sorted(map(str, BY_ID.glob("*")))
    return stable or sorted(str(path) for kind in ("ttyACM*", "ttyUSB*") for path in DEVICES.glob(kind))


def stable_name(name: str) -> str:
    """The name that still finds the same adapter when it was unplugged and its device has got another number: `name`
    itself when it is a link or a URL, else the link under /dev/serial/by-id where there is one."""
    if "://" in name or os.path.islink(name):
        return name
    device = os.path.realpath(name)
    return next((str(link) for link in sorted(BY_ID.glob("*")) if os.path.realpath(link) == device), name)


def holders(name: str) -> list[str]:
    """Other programs that have the device open, as "name (process 123)". Only processes that this user may look into
    are seen; the one that plays the device behind a pseudo-terminal is none."""
    if "://" in name:
        return []
    device, found = os.path.realpath(name), []
    for process in PROCESSES.glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        with suppress(OSError):  # ended meanwhile, or somebody else's
            opened = {os.readlink(fd) for fd in (process / "fd").iterdir()}
            if device in opened and not any(target.startswith(TERMINAL_MASTER) for target in opened):
                found.append(f"{(process / 'comm').read_text().strip()} (process {process.name})")
    return found
