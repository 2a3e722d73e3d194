"""What can be wrong with a machine that runs robots, looked at piece by piece. Nothing here changes anything.

Each look is a function that gives findings; what it needs of the machine is a parameter, so that a test can hand it
another machine. Every finding that is not fine says the one thing that mends it.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import BusBusy, BusLost, CalibrationError, CameraLost, ConfigError, HotpolicyError

if TYPE_CHECKING:
    from hotpolicy.launch.profile import ArmProfile

Level = Literal["ok", "warn", "bad"]

SYS_SERIAL = Path("/sys/bus/usb-serial/devices")
TEGRA = Path("/etc/nv_tegra_release")  # on every Jetson
NVIDIA = Path("/proc/driver/nvidia/version")
LATENCY_MS = 1  # more, and an FTDI adapter holds each answer back
LEAST_FREE_GB, LEAST_MEMORY_GB = 5.0, 2.0
RATE_S = 1.5  # how long a camera's frames are counted
SLOW = 0.8  # a camera below this share of the wanted rate is too slow

# What each extra brings; the first is asked for by name.
EXTRAS = {
    "server": ("torch", "safetensors", "prometheus-client", "sentencepiece"),
    "robots": ("pyserial", "opencv-python-headless"),
    "finetune": ("pyarrow", "av"),
    "export": ("onnx",),
    "sim": ("mujoco",),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    area: str  # versions, gpu, memory, disk, ports, motors, cameras, store
    level: Level
    text: str
    mend: str = ""  # the command, or the one thing to do; empty when all is well

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def look_at_versions() -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("versions", "ok", f"Python {python}, hotpolicy {_version('hotpolicy') or 'from a source tree'}")
    for extra, packages in EXTRAS.items():
        missing = [package for package in packages if _version(package) is None]
        if missing:
            yield Finding(
                "versions", "warn", f"{extra}: {', '.join(missing)} not installed", f"pip install 'hotpolicy[{extra}]'"
            )
        else:
            yield Finding("versions", "ok", f"{extra}: " + ", ".join(f"{p} {_version(p)}" for p in packages))
    runtimes = [name for name in ("onnxruntime", "onnxruntime-gpu") if _version(name)]
    if len(runtimes) == 2:  # two wheels of one module: whichever was installed last works, or neither
        yield Finding(
            "versions", "bad", "onnxruntime and onnxruntime-gpu are both installed", "pip uninstall onnxruntime"
        )


def look_at_gpu(nvidia: Path = NVIDIA, tegra: Path = TEGRA) -> Iterator[Finding]:
    """A GPU that torch cannot use is worse than none: everything works, slowly, and nobody says so."""
    there = nvidia.exists() or tegra.exists()
    try:
        import torch
    except ImportError:
        if there:
            yield Finding("gpu", "warn", "there is a GPU, and no torch", "pip install 'hotpolicy[server]'")
        return
    if not torch.cuda.is_available():
        if not there:
            yield Finding("gpu", "ok", "none; policies run on the processor")
            return
        source = "https://pypi.jetson-ai-lab.io" if tegra.exists() else "https://download.pytorch.org/whl/cu128"
        yield Finding(
            "gpu",
            "bad",
            f"there is a GPU, torch {torch.__version__} cannot use it",
            f"pip install --force-reinstall torch --index-url {source}",
        )
        return
    try:
        square = torch.randn(256, 256, device="cuda")
        if not bool(torch.isfinite(square @ square).all()):
            raise RuntimeError("a matrix product is not finite")
    except RuntimeError as error:
        text = str(error).splitlines()[0]
        yield Finding("gpu", "bad", f"{torch.cuda.get_device_name()}: {text}", "reinstall torch for this CUDA version")
        return
    free, whole = torch.cuda.mem_get_info()
    yield Finding(
        "gpu",
        "ok",
        f"{torch.cuda.get_device_name()}: a matrix product works, {free / 1e9:.1f} of {whole / 1e9:.1f} GB free",
    )


def look_at_memory(meminfo: Path = Path("/proc/meminfo")) -> Iterator[Finding]:
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        whole, free = (int(lines[key].split()[0]) / 1e6 for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return  # not Linux
    text = f"{free:.1f} of {whole:.1f} GB available"
    if free < LEAST_MEMORY_GB:
        yield Finding("memory", "warn", text, "close other programs; a tuning run needs a few GB beside the server")
    else:
        yield Finding("memory", "ok", text)


def look_at_disk(folder: Path) -> Iterator[Finding]:
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free / 1e9
    if not os.access(there, os.W_OK):
        yield Finding("disk", "bad", f"{there}: cannot be written", f"sudo chown $USER {there}")
    elif free < LEAST_FREE_GB:
        yield Finding(
            "disk", "warn", f"{there}: {free:.1f} GB free", "free some space: demonstrations and versions add up"
        )
    else:
        yield Finding("disk", "ok", f"{there}: {free:.0f} GB free")


def look_at_store(folder: Path) -> Iterator[Finding]:
    """Every version that could be asked for, its digests included. An export of what is here sealed is left out: it is
    made again when it is damaged."""
    from hotpolicy.launch.versions import open_store
    from hotpolicy.runtime.graphs.exported import Exported

    if not (folder / "versions").is_dir():
        yield Finding("store", "ok", f"{folder}: none yet; `hotpolicy add nano --store {folder}` makes one")
        return
    store = open_store(folder, onnx=(folder / "onnx").is_dir() and find_spec("onnxruntime") is not None)
    sealed = sorted((folder / "versions").glob("[!.]*"))
    exports = [
        path for path in sorted((folder / "onnx").glob("[!.]*")) if not (folder / "versions" / path.name).is_dir()
    ]
    for path in [*sealed, *exports]:
        try:
            if path in sealed:
                store.open(path.name).verify()
            else:
                Exported.open(path)
        except HotpolicyError as error:
            yield Finding("store", "bad", str(error), f"restore {path} from a copy, or delete it")
    try:
        yield Finding("store", "ok", f"{folder}: serves {store.live()}")
    except HotpolicyError as error:
        yield Finding("store", "bad", str(error), f"hotpolicy add nano --store {folder}")


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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
