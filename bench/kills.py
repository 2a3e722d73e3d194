"""kill -9 at random moments: nothing that was sealed may be lost or torn. A section for each thing that writes.

    python bench/kills.py                       # 50 kills in each section
    python bench/kills.py train seal --kills 5 --seed 7

`record`: a process that records. `train`: a tuning process while it trains; what comes after it must go on from at most
one checkpoint interval before the kill, and end in the same weights, to the last bit, as one nobody killed. `seal`:
from the last step to the version in the store, half of the kills by the clock, half at an operation on the disk drawn
at random. `publish`: a tuning process that swaps its version into the server. `serve`: the server, meanwhile.
After every kill all sealed episodes or bundles are read again and their digests checked. In all but `record` a robot
asks the server all the time.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from pathlib import Path

import kills_tuning
from kills_record import record
from kills_site import Site

STEPS, SAVE_S = 60, 0.1  # of a tuning run, and between its checkpoints
TUNING = {
    "train": kills_tuning.train, "seal": kills_tuning.seal, "publish": kills_tuning.publish,
    "serve": kills_tuning.serve,
}  # fmt: skip


class Notes:
    """What happened in a section, counted."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}

    def __call__(self, what: str, count: int = 1) -> None:
        self.found[what] = self.found.get(what, 0) + count

    def __str__(self) -> str:
        return "; ".join(f"{what}: {count}" for what, count in self.found.items())


def row(section: str, kills: int, seed: int, steps: int) -> str:
    """Of the table: raises AssertionError for whatever was lost, torn or not resumed."""
    notes, draw = Notes(), random.Random(seed)
    served = ("-", "-", "-")
    with tempfile.TemporaryDirectory(prefix="kills") as name:
        folder = Path(name)
        if section == "record":
            sealed = record(folder, kills, draw, notes)
        else:
            site = Site(folder, steps, SAVE_S)
            kills = TUNING[section](site, kills, draw, notes)
            sealed, found = site.whole(), site.end()
            served = (str(found["asked"]), str(found["failed"]), f"{1000 * found['longest_s']:.0f}")
            assert not found["failed"] or section == "serve", found
    return f"| {section} | {kills} | {sealed} | 0 | {' | '.join(served)} | {notes} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=["record", *TUNING, []], help="default: all")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS, help="of a tuning run")
    options = parser.parse_args()
    print("| killed | kills | sealed | lost or torn | asked | unanswered | longest wait, ms | notes |", flush=True)
    print("|-|-:|-:|-:|-:|-:|-:|-|", flush=True)
    began = time.monotonic()
    for name in options.sections or ["record", *TUNING]:
        print(row(name, options.kills, options.seed, options.steps), flush=True)
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    print(f"\n{time.monotonic() - began:.0f} s on {cores} cores, load {load:.1f}")


if __name__ == "__main__":
    main()
