"""The wheel of this tree and fresh environments to put it in, for the scripts beside this file."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def build_wheel(folder: Path) -> Path:
    """Of a copy of the tree, so that nothing is left in it. Raises CalledProcessError."""
    tree = folder / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for layer in ("runtime", "finetune", "robots", "launch"):
        shutil.copytree(ROOT / layer, tree / layer, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(tree)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("hotpolicy-*.whl"))


def make_venv(python: str, folder: Path, wheel: Path, extras: str = "", packages: tuple[str, ...] = ()) -> Path:
    """An environment with the wheel in it, at the pinned versions; its interpreter. Raises CalledProcessError."""
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    inside = folder / "bin/python"
    install = [str(inside), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    wanted = [f"{wheel}[{extras}]" if extras else str(wheel), *packages]
    subprocess.run([*install, *wanted, "--constraint", str(ROOT / "constraints.txt")], check=True)
    return inside


def size_mb(folder: Path) -> float:
    """Of all files in it, MB."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
