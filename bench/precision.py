"""What less precision does to the shipped nano policy: success on the virtual arm, by torch and by every export.

    python bench/precision.py [--episodes 13] [--many 25]

The policy is served by `hotpolicy serve`, and two virtual arms (servos on a serial port, camera, limits) try EPISODES
scenes of each skill and colour: the same ones for every precision. Then MANY scenes of each with the servos left out
and the same noise for all (launch/rollouts.py): 25 scenes are one batch, whose robots share the ranges of int8, so that
each is rounded more coarsely than when it is alone. Prints success with its 95 % Wilson interval, and the certificate's
largest and mean error in the robot's units.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path

from hotpolicy.launch.machine import describe_machine
from hotpolicy.launch.nano import SHIPPED, VERBS
from hotpolicy.launch.play.fleet import Exam, Fleet, by_verb
from hotpolicy.launch.processes import Child
from hotpolicy.launch.rollouts import Score, rollout
from hotpolicy.launch.success import interval
from hotpolicy.robots.sim.tasks import KNOWN_COLOURS, Task
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.engine import Engine
from hotpolicy.runtime.engine.onnx_engine import OnnxEngine
from hotpolicy.runtime.engine.torch_engine import TorchEngine
from hotpolicy.runtime.export import export
from hotpolicy.runtime.graphs.quantise import BOUNDS
from hotpolicy.runtime.policy import Policy

SEED = 600_000_000  # scenes that no demonstration, gate or examination uses
ARMS = 2
TASKS = [Task(verb, colour) for verb in VERBS for colour in KNOWN_COLOURS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=13)
    parser.add_argument("--many", type=int, default=25)
    options = parser.parse_args()
    base = Bundle.open(SHIPPED)
    print(", ".join(f"{k} {v}" for k, v in describe_machine().items()), f"load {os.getloadavg()[0]:.1f}", flush=True)
    skills = " |".join(f" {verb}, {how}" for how in ("virtual arm", "25 in a batch") for verb in VERBS)
    print(f"| nano {base.id} | error, at most | mean |{skills} | s |\n|-|-|-|{'-|' * 2 * len(VERBS)}-:|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for name, served, engine, error in engines(base, Path(temporary)):
            begun = now()
            work = Path(tempfile.mkdtemp(dir=temporary))
            scores = [*driven(work, served, options.episodes), *rolled(Policy(base, engine), options.many)]
            print(f"| {name} | {error} | {' | '.join(map(told, scores))} | {now() - begun:.0f} |", flush=True)


def engines(base: Bundle, folder: Path) -> Iterator[tuple[str, Path, Engine, str]]:
    """Name, the folder to serve, engine, and the error at most and on average, as two cells of a table."""
    yield "torch, fp32", base.folder, TorchEngine.load(base, device="cpu", dtype="fp32", threads=1), "- | -"
    for precision in BOUNDS:
        exported = export([base], folder / precision, precision)
        cells = []
        for kind in ("max", "mean"):
            joint = max(exported.certificate["joints"], key=itemgetter(kind))
            cells.append(f"{joint[kind]:.2g} {joint['unit']} ({joint['name']})")
        yield f"ONNX Runtime, {precision}", exported.folder, OnnxEngine.open(exported), " | ".join(cells)


def driven(work: Path, served: Path, episodes: int) -> list[Score]:
    """The long way: serial ports, cameras and sockets."""
    endpoint, control = f"ipc://{work}/policy", f"ipc://{work}/policy.control"
    arguments = ["serve", str(served), "--store", str(work / "store"), "--endpoint", endpoint, "--threads", "1"]
    server = Child("policy server", arguments, work / "server.log")
    try:
        with Fleet(work, ARMS, endpoint, control) as fleet:
            server.wait_ready()
            found = by_verb(fleet.examine([Exam(t, episodes, SEED + 1000 * i) for i, t in enumerate(TASKS)]))
    finally:
        server.stop()
    return [found[verb] for verb in VERBS]


def rolled(policy: Policy, episodes: int) -> list[Score]:
    scores = [(task.verb, rollout(policy, task, episodes, SEED + 1000 * i)) for i, task in enumerate(TASKS)]
    return [total(verb, [score for of, score in scores if of == verb]) for verb in VERBS]


def total(verb: str, scores: Sequence[Score]) -> Score:
    return Score(verb, sum(score.successes for score in scores), sum(score.episodes for score in scores))


def told(score: Score) -> str:
    low, high = interval(asdict(score))
    return f"{score.successes}/{score.episodes}, {low:.2f} to {high:.2f}"


if __name__ == "__main__":
    main()
