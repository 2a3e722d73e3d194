"""The wheel holds what the repository holds: an undeclared folder or file would be missing from it in silence."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
LAYERS = ("runtime", "finetune", "robots", "launch")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def shipped_files() -> set[str]:
    """Everything under the four source folders that is not a leftover, as repository paths."""
    return {
        str(path.relative_to(ROOT))
        for layer in LAYERS
        for path in (ROOT / layer).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }


def test_every_source_folder_is_declared() -> None:
    folders = {Path(name).parent for name in shipped_files() if name.endswith(".py")}
    found = {".".join(("hotpolicy", *folder.parts)) for folder in folders}
    assert found <= set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_declared_folder_exists() -> None:
    for package in PROJECT["tool"]["setuptools"]["packages"]:
        assert (ROOT / Path(*package.split(".")[1:])).is_dir(), package


def test_type_checkers_see_the_same_tree() -> None:
    for layer in LAYERS:
        assert (ROOT / ".types/hotpolicy" / layer).resolve() == ROOT / layer


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of this tree, built with this interpreter's setuptools: no network, nothing left here."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for layer in LAYERS:
        shutil.copytree(ROOT / layer, tree / layer, ignore=shutil.ignore_patterns("__pycache__"))
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tree / "dist")], cwd=tree, check=True, capture_output=True)
    return next((tree / "dist").glob("hotpolicy-*.whl"))


def test_wheel_holds_every_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    assert {f"hotpolicy/{name}" for name in shipped_files()} <= inside
    assert "hotpolicy/__init__.py" not in inside  # a namespace: other distributions may add to it
    for layer in LAYERS:
        assert f"hotpolicy/{layer}/py.typed" in inside


def test_wheel_carries_licence_and_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry_points = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "hotpolicy = hotpolicy.launch.cli:main" in entry_points


def test_base_install_is_thin() -> None:
    names = {re.split(r"[<>=!~ ]", requirement)[0] for requirement in PROJECT["project"]["dependencies"]}
    assert names == {"numpy", "pyzmq", "msgpack", "filelock"}


def constraint_lines() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_constraints_are_exact_and_complete() -> None:
    pins = constraint_lines()
    assert all(re.match(r"^[a-z0-9-]+==[0-9][0-9a-z.]*( ; python_version [<>=]+ '3\.\d+')?$", line) for line in pins)
    assert "torch==2.13.0" in pins
    assert not [line for line in pins if line.startswith(("nvidia", "cuda", "triton"))]
    named = {line.split("==")[0] for line in pins}
    wanted = [*PROJECT["project"]["dependencies"]]
    for extra, requirements in PROJECT["project"]["optional-dependencies"].items():
        wanted += requirements if extra not in ("gpu", "onnx-gpu") else []
    names = {re.split(r"[<>=!~ \[]", requirement)[0].lower() for requirement in wanted} - {"hotpolicy"}
    assert names <= named
