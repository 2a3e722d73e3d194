"""A look at the computer: its GPU, memory and disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from hotpolicy.launch.checkup.finding import Finding

TEGRA = Path("/etc/nv_tegra_release")  # on every Jetson
NVIDIA = Path("/proc/driver/nvidia/version")
LEAST_FREE_GB, LEAST_MEMORY_GB = 5.0, 2.0


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
