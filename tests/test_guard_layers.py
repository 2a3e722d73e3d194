"""The layers hold: who may import whom, what never appears in the source, and what a robot client may not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("runtime", "finetune", "robots", "launch")
ALLOWED = {
    "runtime": {"runtime"},
    "finetune": {"finetune", "runtime"},
    "robots": {"robots", "runtime"},
    "launch": set(LAYERS),
}
NEVER_IMPORTED = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
NEVER_CALLED = {"torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "eval", "exec", "input", "breakpoint"}
TORCH_FREE = ("messages", "errors", "clock", "wire", "client", "chunks")  # of runtime; what a robot client imports


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("hotpolicy", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every imported name in the file, wherever it stands, as (line, absolute dotted name)."""
    package = module_of(path).split(".") if path.name == "__init__.py" else module_of(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)


def calls(path: Path) -> Iterator[tuple[int, str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func), node


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_imports_only_what_it_may(layer: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources(layer)
        for line, name in imports(path)
        if name.startswith("hotpolicy.") and name.split(".")[1] not in ALLOWED[layer]
    ]
    assert not wrong


def test_no_second_copies_of_our_modules() -> None:
    """`import runtime` from the repository root would make second copies of every class."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources(*LAYERS, "tests", "bench")
        for line, name in imports(path)
        if name.split(".")[0] in LAYERS
    ]
    assert not wrong


def test_launch_has_no_init() -> None:
    """A regular package called launch would hide ROS 2's own `launch` from anyone in this folder."""
    assert not (ROOT / "launch/__init__.py").exists()
    assert not (ROOT / "hotpolicy").exists()


def test_nothing_deserialises_code_or_asks_on_stdin() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources(*LAYERS, "bench")
        for line, name in imports(path)
        if name.split(".")[0] in NEVER_IMPORTED
    ]
    wrong += [
        f"{path.relative_to(ROOT)}:{line} calls {name}"
        for path in sources(*LAYERS, "bench")
        for line, name, call in calls(path)
        if name in NEVER_CALLED or any(keyword.arg == "allow_pickle" for keyword in call.keywords)
    ]
    assert not wrong


def test_no_wall_clock_where_robots_move() -> None:
    """Deadlines and rates live on the monotonic clock; a corrected system time must not move an arm."""
    wall = {"time.time", "datetime.now", "datetime.datetime.now", "datetime.utcnow"}
    motion = [path for path in sources("runtime", "robots") if path.name not in {"store.py", "bundle.py", "export.py"}]
    wrong = [f"{path.relative_to(ROOT)}:{line}" for path in motion for line, name, _ in calls(path) if name in wall]
    assert not wrong


def imported_by(*modules: str) -> set[str]:
    """Top-level names in sys.modules of a fresh interpreter after importing `modules`."""
    code = f"import sys, importlib; [importlib.import_module(m) for m in {modules!r}]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_client_side_is_light() -> None:
    heavy = {"torch", "onnxruntime", "safetensors", "scipy", "matplotlib", "pyarrow", "mujoco", "typer", "serial"}
    assert not heavy & imported_by("hotpolicy.runtime", *(f"hotpolicy.runtime.{name}" for name in TORCH_FREE))
