"""A look at what is plugged in: serial ports, motors and cameras."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hotpolicy.launch.checkup.finding import Finding
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import BusBusy, BusLost, CalibrationError, CameraLost, ConfigError, HotpolicyError

if TYPE_CHECKING:
    from hotpolicy.launch.profile import ArmProfile

SYS_SERIAL = Path("/sys/bus/usb-serial/devices")
LATENCY_MS = 1  # more, and an FTDI adapter holds each answer back
RATE_S = 1.5  # how long a camera's frames are counted
SLOW = 0.8  # a camera below this share of the wanted rate is too slow


def look_at_ports(sys_serial: Path = SYS_SERIAL, found: list[str] | None = None) -> Iterator[Finding]:
    """Adapters, who may open them and who has, and how long they hold answers back."""
    from hotpolicy.robots.servo.ports import candidates, holders

    ports = candidates() if found is None else found
    if not ports:
        yield Finding("ports", "warn", "no serial port", "plug in the arm's adapter; see `dmesg | tail`")
    for port in ports:
        device = os.path.realpath(port)
        latency = _latency_ms(sys_serial / Path(device).name / "latency_timer")
        if not os.access(device, os.R_OK | os.W_OK):
            yield Finding("ports", "bad", f"{port}: no permission", "sudo usermod -aG dialout $USER, and log in again")
        elif others := holders(port):
            yield Finding("ports", "warn", f"{port}: open in {', '.join(others)}", "end that program first")
        elif latency is not None and latency > LATENCY_MS:
            mend = f"echo {LATENCY_MS} | sudo tee {sys_serial / Path(device).name / 'latency_timer'}"
            yield Finding("ports", "warn", f"{port}: latency timer {latency} ms", mend)
        else:
            yield Finding("ports", "ok", port + (f" ({device})" if device != port else ""))


def look_for_modem_manager(processes: Path = Path("/proc")) -> Iterator[Finding]:
    """It opens every new ACM port to see whether it is a modem, and so breaks into an arm's first words."""
    for comm in processes.glob("[0-9]*/comm"):
        try:
            running = comm.read_text().strip() == "ModemManager"
        except OSError:
            continue
        if running:
            mend = "sudo systemctl disable --now ModemManager"
            yield Finding("ports", "warn", "ModemManager runs and may talk to arms it takes for modems", mend)
            return


def look_at_cameras(wanted: Mapping[str, tuple[str, int, int]], rate_hz: float) -> Iterator[Finding]:
    """`wanted`: name -> (source, height, width). Each is opened and its frames are counted."""
    from hotpolicy.robots.camera import open_camera

    for name, (source, height, width) in wanted.items():
        try:
            camera = open_camera(name, source, height, width)
        except CameraLost as error:
            yield Finding(
                "cameras", "bad", str(error), "plug it in, or set its source in the profile: ls /dev/v4l/by-id"
            )
            continue
        except ConfigError as error:
            yield Finding("cameras", "bad", str(error), "set its height and width in the profile")
            continue
        first, started = camera.frames, now()
        time.sleep(RATE_S)
        rate = (camera.frames - first) / (now() - started)
        camera.close()
        text = f"{name} ({source}): {height}x{width}, {rate:.1f} frames/s"
        if rate < SLOW * rate_hz:
            yield Finding(
                "cameras",
                "warn",
                f"{text}, the robot runs at {rate_hz:g} Hz",
                "more light, a USB 3 port, or a smaller picture",
            )
        else:
            yield Finding("cameras", "ok", text)


def look_at_motors(profile: ArmProfile) -> Iterator[Finding]:
    """An arm of a profile: on its port, whole, calibrated as its file says, without faults. It does not move."""
    from hotpolicy.robots.arms.catalogue import ARMS
    from hotpolicy.robots.servo.arm import connect
    from hotpolicy.robots.servo.bus import Timing

    port, kind = profile.port, profile.kind
    timing = Timing(baud=profile.baudrate, margin_ms=50.0, budget_ms=500.0)
    try:
        arm = connect(port, profile.calibration, table=ARMS[kind], timing=timing)
    except BusBusy as error:
        yield Finding("motors", "bad", str(error), "end that program first")
    except BusLost as error:
        yield Finding("motors", "bad", str(error), "plug it in, and set arm.port in the profile: ls /dev/serial/by-id")
    except CalibrationError as error:
        yield Finding("motors", "bad", str(error), f"hotpolicy calibrate --port {port} --arm {kind} --id NAME")
    except HotpolicyError as error:
        mend = f"check power and cables; a new servo: hotpolicy setup-motors --port {port} --arm {kind}"
        yield Finding("motors", "bad", str(error), mend)
    else:
        try:
            faults = arm.read().faults
        except HotpolicyError as error:
            faults = {"bus": (str(error),)}
        finally:
            arm.bus.close()
        for joint, names in faults.items():
            yield Finding("motors", "bad", f"{joint}: {', '.join(names)}", "switch its power off and on, let it cool")
        if not faults:
            yield Finding(
                "motors", "ok", f"{port}: {len(arm.table.servos)} servos, calibrated as {profile.calibration}"
            )


def _latency_ms(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None  # only FTDI adapters have one
