"""The wheel on every Python it is for: the base alone, a client that loads no torch, tests of wire and client.

    python tests/compat/pythons.py              # those of 3.10 to 3.13 that are on PATH, or that uv finds
    python tests/compat/pythons.py 3.10 3.12

Prints a table; the exit code is 1 when one fails or none was found.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from wheels import ROOT, build_wheel, make_venv, size_mb

VERSIONS = ("3.10", "3.11", "3.12", "3.13")
# What a robot's client runs, and what it is made of: nothing here needs more than the base install.
TESTS = (
    "test_wire_codec.py",
    "test_client_deadlines.py",
    "test_chunk_buffer.py",
    "test_scheduler_rules.py",
    "test_server_answers.py",
    "test_server_endpoints.py",
)
TOOLS = ("pytest", "pytest-timeout", "hypothesis", "prometheus-client")  # the last: some tests read the metrics
IMPORT = """
import sys, time
started = time.perf_counter()
import hotpolicy.runtime.client, hotpolicy.runtime.chunks, hotpolicy.runtime.messages
took = time.perf_counter() - started
heavy = {"torch", "onnxruntime", "ml_dtypes", "typer", "PIL"} & set(sys.modules)
assert not heavy, heavy
print(f"{1000 * took:.0f}")
"""


def find_python(version: str) -> str | None:
    """An interpreter of this version that runs, e.g. not a shim without one behind it."""
    found = [shutil.which(f"python{version}")]
    if uv := shutil.which("uv"):
        done = subprocess.run([uv, "python", "find", version], capture_output=True, text=True)
        found.append(done.stdout.strip() if done.returncode == 0 else None)
    for path in found:
        if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return path
    return None


def try_python(version: str, python: str, wheel: Path, home: Path) -> dict[str, str]:
    """What was found, by column; `result` is "passed" or what went wrong."""
    row = {"python": version, "exact": "", "base MB": "", "client import ms": "", "tests": "", "result": "passed"}
    row["exact"] = subprocess.check_output(
        [python, "-c", "import platform; print(platform.python_version())"], text=True
    )
    try:
        inside = make_venv(python, home / version, wheel)
    except subprocess.CalledProcessError as error:
        return {**row, "result": f"install failed: {error}"}
    row["base MB"] = f"{size_mb(home / version) - pip_mb(home / version):.0f}"
    imported = [subprocess.run([inside, "-c", IMPORT], capture_output=True, text=True) for _ in range(3)]
    if imported[-1].returncode:
        return {**row, "result": imported[-1].stderr.strip().splitlines()[-1]}
    row["client import ms"] = min((done.stdout.strip() for done in imported), key=int)
    tools = [str(inside), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *TOOLS]
    subprocess.run([*tools, "--constraint", str(ROOT / "constraints.txt")], check=True)
    tree = home / f"tree-{version}"  # tests only: the modules come from the wheel
    shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__", "golden"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    command = [str(inside), "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{name}" for name in TESTS)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()]
    row["tests"] = lines[-1].strip("= ")
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:], file=sys.stderr)
        row["result"] = "tests failed"
    return row


def pip_mb(venv: Path) -> float:
    """What venv itself brings."""
    return sum(
        size_mb(path) for name in ("pip", "setuptools") for path in venv.glob(f"lib/python*/site-packages/{name}*")
    )


def main(versions: list[str]) -> int:
    rows = []
    with tempfile.TemporaryDirectory(prefix="hotpolicy-pythons-") as folder:
        home = Path(folder)
        wheel = build_wheel(home)
        for version in versions:
            python = find_python(version)
            row = (
                try_python(version, python, wheel, home) if python else {"python": version, "result": "not found here"}
            )
            rows.append({column: value.strip() for column, value in row.items()})
            print(f"{version}: {rows[-1]['result']}", file=sys.stderr)
    columns = ("python", "exact", "base MB", "client import ms", "tests", "result")
    print("| " + " | ".join(columns) + " |", "|-" * len(columns) + "|", sep="\n")
    for row in rows:
        print("| " + " | ".join(row.get(column, "") for column in columns) + " |")
    results = {row["result"] for row in rows} - {"not found here"}
    return 0 if results == {"passed"} else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:] or list(VERSIONS)))
