"""openpi's published client, unmodified, in an environment of its own (`make test` makes it) on our server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = Path(os.environ.get("HOTPOLICY_OPENPI_CLIENT", ROOT / ".venv/openpi"))
MISSING = f"no openpi-client: python tests/compat/openpi_client_check.py --install {FOLDER}"


@pytest.mark.slow
@pytest.mark.skipif(not list(FOLDER.glob("lib/*/site-packages/openpi_client")), reason=MISSING)
def test_the_published_client_works_through_swaps() -> None:
    script = ROOT / "tests/compat/openpi_client_check.py"
    done = subprocess.run([sys.executable, str(script), str(FOLDER)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok:") == 12
