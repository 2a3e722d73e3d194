"""The script that kills, a few times in each section: it asserts what a kill may not cost (see bench/kills.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "bench" / "kills.py"


@pytest.mark.slow
@pytest.mark.parametrize("section", ["seal"])
def test_a_kill_costs_nothing_that_was_sealed(section: str) -> None:
    command = [sys.executable, str(SCRIPT), section, "--kills", "2", "--steps", "40"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    (row,) = [line for line in done.stdout.splitlines() if line.startswith(f"| {section} |")]
    _, kills, sealed, lost, asked, failed, *_ = row.strip("| ").split(" | ")
    assert (kills, lost) == ("2", "0")
    assert int(sealed) >= 3  # the base, and two in a place or one in two
    assert int(asked) > 0
    assert failed == "0" or section == "serve"
