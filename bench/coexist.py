"""What a tuning run beside the server costs the robot: latency of its chunks alone, and with `hotpolicy finetune`.

    python bench/coexist.py                      # the shipped nano policy, ten chunks a second

Server, client and tuning are processes of their own on the same cores; phases take turns, alone and beside, and in each
the client asks at a robot's pace. The bar: p99 beside at most 1.3 times p99 alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from hovering import record_hovering

from hotpolicy.launch.nano import SHIPPED
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.client import PolicyClient
from hotpolicy.runtime.clock import Rate
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.server import PolicyServer
from hotpolicy.runtime.serving.control import Control
from hotpolicy.runtime.slot import Slot
from hotpolicy.runtime.store import Store
from hotpolicy.runtime.versions.golden import Golden
from hotpolicy.runtime.versions.loader import load_with

BAR = 1.3
CONTEXT = multiprocessing.get_context("spawn")


def serve(root: str, endpoint: str) -> None:
    store = Store(root)
    slot = Slot(store, load_with("torch", threads=1))
    PolicyServer(ServeConfig(endpoint=endpoint), slot, Control(slot, store)).run()


@contextmanager
def server(root: Path, endpoint: str) -> Iterator[None]:
    process = CONTEXT.Process(target=serve, args=(str(root), endpoint))
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join(20)


@contextmanager
def tuning(data: Path, store: Path, strategy: str, nice: int) -> Iterator[None]:
    """Past its beginning: it makes steps while this lasts."""
    command = [sys.executable, "-c", "from hotpolicy.launch.cli import main; main()", "finetune", str(data)]
    command += ["--store", str(store), "--strategy", strategy, "--steps", "1000000", "--no-gate", "--json"]
    command += ["--nice", str(nice), "--save-every", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if '"step": 2,' in line:
                break
        lines = process.stdout
        threading.Thread(target=lambda: [None for _ in lines], daemon=True).start()  # a full pipe would stop it
        try:
            yield
        finally:
            process.kill()


def latencies(endpoint: str, rate_hz: float, seconds: float) -> list[float]:
    """ms, of a robot that asks at its pace."""
    bundle, took = Bundle.open(SHIPPED), []
    with PolicyClient(endpoint, timeout_s=10) as client:
        info = client.wait_ready(60)
        golden = Golden.of_chain([bundle]) or Golden.blank(info.spec, info.horizon)
        observation, rate = golden.observations(info.spec)[0], Rate(rate_hz)
        for _ in range(int(rate_hz * seconds)):
            rate.wait()
            started = time.monotonic()
            client.infer(observation)
            took.append(1000 * (time.monotonic() - started))
    return took[int(rate_hz) :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each phase")
    parser.add_argument("--rate", type=float, default=10.0, help="chunks per second")
    parser.add_argument("--strategy", default="expert")
    parser.add_argument("--nice", type=int, default=5, help="of the tuning process")
    options = parser.parse_args()
    alone: list[float] = []
    beside: list[float] = []
    with tempfile.TemporaryDirectory(prefix="coexist-") as folder:
        root, endpoint = Path(folder), f"ipc://{folder}/s"
        store = Store(root / "store")
        store.promote(store.add(SHIPPED), by="bench", request_id="first")
        data = record_hovering(root / "data", Bundle.open(SHIPPED).manifest.spec, episodes=24)
        with server(root / "store", endpoint):
            for _ in range(options.rounds):
                alone += latencies(endpoint, options.rate, options.seconds)
                with tuning(data, root / "store", options.strategy, options.nice):
                    beside += latencies(endpoint, options.rate, options.seconds)
    found = {name: np.quantile(ms, [0.5, 0.95, 0.99, 1.0]) for name, ms in (("alone", alone), ("beside", beside))}
    rounds = f"{options.rounds} rounds of {options.seconds:g} s"
    print(f"{options.strategy}, nice {options.nice}, {options.rate:g} chunks/s, {rounds}")
    for name, (p50, p95, p99, longest) in found.items():
        print(f"  {name:<8} p50 {p50:.1f}  p95 {p95:.1f}  p99 {p99:.1f}  max {longest:.1f} ms  ({len(alone)} requests)")
    ratio = found["beside"][2] / found["alone"][2]
    print(f"  p99 beside / alone {ratio:.2f}, bar {BAR}: {'met' if ratio <= BAR else 'missed'}")
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(f"  {machine}, load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
