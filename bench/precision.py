"""What less precision does to the shipped nano policy: success on the simulated table, by torch and by every export.

    python bench/precision.py [--episodes 13]

EPISODES scenes for each skill and colour, the same ones and the same noise for all; the arm's limits are the virtual
arm's, its servos are left out (launch/rollouts.py). 25 scenes are one batch, and int8 rounds a batch with one range: a
robot that is alone has it finer. Prints the success rate with its 95 % Wilson interval, and the certificate's error in
the robot's units.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

# this folder goes last, or `import onnx` would find one of its files
sys.path.sort(key=lambda place: Path(place).resolve() == Path(__file__).resolve().parent)

from hotpolicy.launch.machine import describe_machine
from hotpolicy.launch.nano import SHIPPED, VERBS
from hotpolicy.launch.results import interval
from hotpolicy.launch.rollouts import Score, rollout
from hotpolicy.robots.sim.tasks import KNOWN_COLOURS, Task
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.engine import Engine
from hotpolicy.runtime.engine.onnx_engine import OnnxEngine
from hotpolicy.runtime.engine.torch_engine import TorchEngine
from hotpolicy.runtime.export import export
from hotpolicy.runtime.policy import Policy
from hotpolicy.runtime.quantise import BOUNDS

SEED = 600_000_000  # scenes that no demonstration, gate or examination uses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=13)
    episodes = parser.parse_args().episodes
    base = Bundle.open(SHIPPED)
    print(", ".join(f"{k} {v}" for k, v in describe_machine().items()), f"load {os.getloadavg()[0]:.1f}", flush=True)
    print(f"| nano {base.id} | error, at most | mean |" + "".join(f" {verb} |" for verb in VERBS) + " s |")
    print("|-|-|-|" + "-|" * len(VERBS) + "-:|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, engine, error in engines(base, Path(folder)):
            begun, policy = now(), Policy(base, engine)
            scores = {verb: tried(policy, verb, episodes) for verb in VERBS}
            cells = [f"{s.successes}/{s.episodes}, {span(s)}" for s in scores.values()]
            print(f"| {name} | {error} | {' | '.join(cells)} | {now() - begun:.0f} |", flush=True)


def engines(base: Bundle, folder: Path) -> Iterator[tuple[str, Engine, str]]:
    """Name, engine, and the error at most and on average, as two cells of a table."""
    yield "torch, fp32", TorchEngine.load(base, device="cpu", dtype="fp32", threads=1), "- | -"
    for precision in BOUNDS:
        exported = export([base], folder / precision, precision)
        found = exported.certificate
        most = max(found["joints"], key=lambda joint: joint["max"])
        mean = max(found["joints"], key=lambda joint: joint["mean"])
        cells = " | ".join(
            f"{joint[key]:.2g} {joint['unit']} ({joint['name']})" for joint, key in ((most, "max"), (mean, "mean"))
        )
        yield f"ONNX Runtime, {precision}", OnnxEngine.open(exported), cells


def tried(policy: Policy, verb: str, episodes: int) -> Score:
    scores = [
        rollout(policy, Task(verb, colour), episodes, SEED + 1000 * index) for index, colour in enumerate(KNOWN_COLOURS)
    ]
    return Score(verb, sum(score.successes for score in scores), sum(score.episodes for score in scores))


def span(score: Score) -> str:
    low, high = interval(asdict(score))
    return f"{low:.2f} to {high:.2f}"


if __name__ == "__main__":
    main()
