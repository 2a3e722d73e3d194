"""What computing robots together is worth: four robots at full rate, one at a time and in batches, by turns.

    python bench/batch.py                       # the shipped nano policy, torch, one thread

Two servers on one bundle, each a process, differ in `max_batch` alone; in each round first one and then the other is
asked by four client processes. Every answer must be the live version's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.client import PolicyClient
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.server import PolicyServer
from hotpolicy.runtime.serving.control import Control
from hotpolicy.runtime.slot import Slot
from hotpolicy.runtime.store import Store
from hotpolicy.runtime.versions.golden import Golden
from hotpolicy.runtime.versions.loader import load_with

NANO = Path(__file__).parents[1] / "launch" / "assets" / "nano"
CONTEXT = multiprocessing.get_context("spawn")
Robots = list[tuple[Any, Any]]  # a process and the pipe to it


def serve(root: str, endpoint: str, engine: str, max_batch: int) -> None:
    store = Store(root)
    slot = Slot(store, load_with(engine, threads=1))
    PolicyServer(ServeConfig(endpoint=endpoint, max_batch=max_batch), slot, Control(slot, store)).run()


def ask(endpoint: str, pipe: Any) -> None:
    """One robot: told for how long, it asks as soon as it is answered, and tells how long each answer took, ms."""
    golden = Golden.of_chain([Bundle.open(NANO)])
    with PolicyClient(endpoint, timeout_s=20) as client:
        info = client.wait_ready(60)
        observation = (golden or Golden.blank(info.spec, info.horizon)).observations(info.spec)[0]
        pipe.send("ready")
        while (seconds := pipe.recv()) is not None:
            ends, took = time.monotonic() + seconds, []
            while time.monotonic() < ends:
                started = time.monotonic()
                assert client.infer(observation).version == info.version
                took.append(1000 * (time.monotonic() - started))
            pipe.send(took)


@contextmanager
def fleet(root: Path, engine: str, max_batch: int, robots: int) -> Iterator[Robots]:
    endpoint = f"ipc://{root}/{max_batch}"
    server = CONTEXT.Process(target=serve, args=(str(root), endpoint, engine, max_batch))
    server.start()
    members: Robots = []
    try:
        for _ in range(robots):
            mine, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=ask, args=(endpoint, theirs), daemon=True)
            process.start()
            members.append((process, mine))
        for _, pipe in members:
            assert pipe.recv() == "ready"
        yield members
    finally:
        for process, pipe in members:
            pipe.send(None)
            process.join(20)
        server.terminate()
        server.join(20)


def turn(members: Robots, seconds: float) -> list[float]:
    for _, pipe in members:
        pipe.send(seconds)
    return [took for _, pipe in members for took in pipe.recv()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="torch", choices=("torch", "onnx"))
    parser.add_argument("--robots", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    sizes = (1, options.robots)
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    waits: dict[int, list[float]] = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory(prefix="batch-") as folder, ExitStack() as stack:
        root = Path(folder)
        store = Store(root)
        store.promote(store.add(NANO), by="bench", request_id="first")
        fleets = {size: stack.enter_context(fleet(root, options.engine, size, options.robots)) for size in sizes}
        for _ in range(options.rounds):
            for size, members in fleets.items():
                took = turn(members, options.seconds)
                rates[size].append(len(took) / options.seconds)
                waits[size] += took
    ratios = [together / alone for alone, together in zip(*rates.values(), strict=True)]
    print(f"{options.engine}, {options.robots} robots, {options.rounds} rounds of {options.seconds:g} s each")
    for size in sizes:
        p50, p95 = np.quantile(waits[size], [0.5, 0.95])
        print(f"  at most {size} together: {np.median(rates[size]):6.1f} chunks/s, p50 {p50:.0f} ms, p95 {p95:.0f} ms")
    print(f"  ratio {np.median(ratios):.2f} (rounds {', '.join(f'{ratio:.2f}' for ratio in ratios)})")
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(f"  {machine}, load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
