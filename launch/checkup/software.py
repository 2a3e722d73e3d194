"""A look at what is installed, and at the store of policy versions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from hotpolicy.launch.checkup.finding import Finding
from hotpolicy.launch.versions import open_store
from hotpolicy.runtime.errors import HotpolicyError

# What each extra brings; the first is asked for by name.
EXTRAS = {
    "server": ("torch", "safetensors", "prometheus-client", "sentencepiece"),
    "robots": ("pyserial", "opencv-python-headless"),
    "finetune": ("pyarrow", "av"),
    "export": ("onnx",),
    "sim": ("mujoco",),
}


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


def look_at_store(folder: Path) -> Iterator[Finding]:
    """Every version that could be asked for, its digests included. An export of what is here sealed is left out: it is
    made again when it is damaged."""
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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
