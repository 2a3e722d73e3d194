"""What was freed goes back to the system when it is asked for, or always."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import numpy as np
from hotpolicy.finetune.budget import resident_bytes
from hotpolicy.finetune.heap import give_back, leave_no_holes
if "always" in sys.argv:
    assert leave_no_holes()
before = resident_bytes()
np.ones(4 << 20, np.uint8); np.ones(30 << 20, np.uint8)  # from here on the C library keeps blocks of this size
blocks = [np.ones(2 << 20, np.uint8) for _ in range(100)]
del blocks[:-1]  # the last one keeps the heap from shrinking
held = resident_bytes() - before
assert give_back()
print(held >> 20, resident_bytes() - before >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
@pytest.mark.parametrize("always", [False, True])
def test_freed_memory_goes_back(always: bool) -> None:
    command = [sys.executable, "-c", PROGRAM, "always" if always else ""]
    held, after = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert (held < 20) == always, "200 MB were freed"
    assert after < 20
