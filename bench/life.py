"""What a robot loses when its server does, what a crash of the engine costs, and what watching a version costs.

    python bench/life.py failover     # two `hotpolicy serve`, a loop at 20 Hz that never waits
    python bench/life.py restart      # the torch engine of the shipped nano policy crashes, and is loaded anew
    python bench/life.py watch        # per batch, by batch size
    python bench/life.py busy         # an equal version after a swap, while other processes take the machine

`failover`: the longest time without an answer, of the loop's own requests (deadline 300 ms), over several trials. The
standby server answers meanwhile; then the first is started again and the loop returns to it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from hotpolicy.launch.processes import Child
from hotpolicy.launch.versions import SHIPPED
from hotpolicy.runtime.client import PolicyClient
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.engine.echo_engine import seal_echo
from hotpolicy.runtime.errors import EngineFault, ServeError
from hotpolicy.runtime.messages import Joint, Observation, RobotSpec
from hotpolicy.runtime.server import PolicyServer
from hotpolicy.runtime.serving.control import Control
from hotpolicy.runtime.serving.run_queue import RunQueue
from hotpolicy.runtime.slot import Slot
from hotpolicy.runtime.store import Store
from hotpolicy.runtime.versions.golden import FILE, Golden
from hotpolicy.runtime.versions.loader import load_with
from hotpolicy.runtime.versions.watch import WINDOW, WINDOWS, Guard, Pace, Record, Watch

TRIALS = 7
PERIOD_S = 0.05
DEADLINE_S = 0.3
COMPUTES_MS = 20.0


def line(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


# Two servers.


def serve(folder: Path, name: str) -> Child:
    store = folder / name
    Store(store).add(seal_echo(folder / "made", 1.0 if name == "first" else 2.0, delay_ms=COMPUTES_MS).folder)
    arguments = ["serve", "--engine", "echo", "--store", str(store), "--endpoint", f"ipc://{folder}/{name}.sock"]
    child = Child(name, arguments, folder / f"{name}.log")
    child.wait_ready()
    return child


class Loop:
    """Asks when it has no answer to wait for, polls otherwise, as a robot's loop does."""

    def __init__(self, client: PolicyClient):
        self.client = client
        self.answers: list[tuple[float, str]] = []  # when, from which server

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        observation = Observation({"front": np.zeros((64, 64, 3), np.uint8)}, np.zeros(6, np.float32), "")
        end, asked = time.monotonic() + seconds, False
        while time.monotonic() < end and not until():
            try:
                if self.client.poll() is not None:
                    self.answers.append((time.monotonic(), self.client.endpoint))
                    asked = False
                if not asked:
                    self.client.ask(observation)
                    asked = True
            except ServeError:
                asked = False
            time.sleep(PERIOD_S)

    def longest_gap(self, since: float) -> float:
        times = [at for at, _ in self.answers if at >= since]
        before = max(at for at, _ in self.answers if at < since)
        return max(after - then for then, after in zip([before, *times], times, strict=False))


def trial(event: int) -> tuple[float, float]:
    """The longest gap after the event, and how long the return to the first server took once it was ready; s."""
    with tempfile.TemporaryDirectory(prefix="hp") as name:
        folder = Path(name)
        first, second = serve(folder, "first"), serve(folder, "second")
        endpoints = [f"ipc://{folder}/{name}.sock" for name in ("first", "second")]
        with second, PolicyClient(endpoints, timeout_s=DEADLINE_S) as client:
            client.wait_ready(10)
            loop = Loop(client)
            loop.run(1.0)
            struck = time.monotonic()
            os.kill(first.process.pid, event)
            loop.run(2.0)
            gap = loop.longest_gap(struck)
            if event == signal.SIGSTOP:
                os.kill(first.process.pid, signal.SIGCONT)
            else:
                first.wait(10)
                first = serve(folder, "first")
            ready = time.monotonic()
            loop.run(30.0, until=lambda: client.endpoint == endpoints[0])
            back = time.monotonic() - ready
        first.stop()
        return gap, back


def failover() -> None:
    line("event", "longest gap, ms: median", "worst", "back on the first, s: median")
    for event in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):
        gaps, backs = zip(*(trial(event) for _ in range(TRIALS)), strict=True)
        line(event.name, f"{1000 * median(gaps):.0f}", f"{1000 * max(gaps):.0f}", f"{median(backs):.1f}")


# One server of the shipped policy.


class Noting(Slot):
    """Keeps how long each batch took, and how much of it it waited for a processor, ms."""

    times: list[tuple[float, float]]

    def report_batch(self, version: str, actions: np.ndarray, ms: float, waited_ms: float = 0.0) -> None:
        self.times.append((ms, waited_ms))
        super().report_batch(version, actions, ms, waited_ms)


class Nano:
    """In this process, so that it can be made to crash."""

    def __init__(self, folder: Path):
        store = Store(folder / "store")
        store.add(SHIPPED / "nano")
        self.slot = Noting(store, load_with("torch"))
        self.slot.times = []
        live = self.slot.live
        self.seen = Golden.load(store.open(live.version).file(FILE)).observations(live.spec)[0]
        self.server = PolicyServer(ServeConfig(endpoint="tcp://127.0.0.1:0"), self.slot, Control(self.slot, store))

    def crash(self) -> None:
        def dies(observations: Sequence[Observation], **rest: object) -> np.ndarray:
            raise SystemExit("crashed on purpose")

        self.slot.live.infer = dies  # type: ignore[assignment]


def restart() -> None:
    times = []
    for _ in range(TRIALS):
        with tempfile.TemporaryDirectory(prefix="hp") as folder:
            nano = Nano(Path(folder))
            with nano.server, PolicyClient(nano.server.endpoint, timeout_s=60) as client:
                client.wait_ready(60)
                client.infer(nano.seen)
                nano.crash()
                began = time.monotonic()
                try:
                    client.infer(nano.seen)
                except EngineFault:
                    client.infer(nano.seen)
                times.append(time.monotonic() - began)
    print(
        f"from the crash to the next answer: {1000 * median(times):.0f} ms, worst of {TRIALS} {1000 * max(times):.0f}"
    )


# The watch.


def watch() -> None:
    queue = RunQueue()
    queue.follow()
    print(f"run queue of one thread: {1e6 * fastest(queue.look):.0f} us, twice for a batch of more than 2 ms")
    for size, horizon, joints in ((1, 16, 7), (4, 16, 7), (4, 50, 14)):
        spec = RobotSpec(tuple(Joint(f"j{n}", "deg", -100.0, 100.0) for n in range(joints)), (), 10.0)
        one = Watch("v", spec, Guard(), Record(100, {}, {size: Pace(10, 20)}))
        actions = np.zeros((size, horizon, joints), np.float32)
        took = fastest(lambda one=one, actions=actions: one.note(actions, 10.0))  # type: ignore[misc]
        print(f"{size} answers of {horizon} x {joints}: {1e6 * took:.0f} us, after they were sent")


def fastest(call: Callable[[], object], rounds: int = 20, calls: int = 500) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - began) / calls)
    return min(times)


def burn() -> None:
    while True:
        np.linalg.svd(np.random.default_rng(0).random((120, 120)))


def busy() -> None:
    """Whether the guard would take a busy machine for a slow version; and what its two precautions are worth."""
    line("processes", "p25, p95 before, ms", "gross", "without the run queue", "p95 alone", "p25 too", "the guard")
    for processes in (2, 6, 12):
        with tempfile.TemporaryDirectory(prefix="hp") as folder:
            nano = Nano(Path(folder))
            times = nano.slot.times
            with nano.server, PolicyClient(nano.server.endpoint, timeout_s=60) as client:
                client.wait_ready(60)
                for _ in range(8 * WINDOW):
                    client.infer(nano.seen)
                calm, times[:] = list(times), []
                beside = [multiprocessing.get_context("spawn").Process(target=burn) for _ in range(processes)]
                for process in beside:
                    process.start()
                time.sleep(3)
                for _ in range(8 * WINDOW):
                    client.infer(nano.seen)
                for process in beside:
                    process.kill()
            before = Pace.of([ms - waited for ms, waited in calm])
            gross, net = [ms for ms, _ in times], [ms - waited for ms, waited in times]
            cells = [f"{pace.fast:.1f}, {pace.slow:.1f}" for pace in (before, Pace.of(gross), Pace.of(net))]
            verdicts = [fires(gross, before, False), fires(gross, before, True), fires(net, before, True)]
            line(processes, *cells, *("goes back" if fired else "stays" for fired in verdicts))


def fires(times: Sequence[float], before: Pace, fast_too: bool) -> bool:
    guard, late = Guard(), 0
    assert guard.slowdown is not None
    for at in range(0, len(times) - WINDOW + 1, WINDOW):
        pace = Pace.of(times[at : at + WINDOW])
        slow = pace.slow > before.slow * guard.slowdown + guard.grace_ms
        fast = pace.fast > before.fast * guard.slowdown + guard.grace_ms
        late = late + 1 if slow and (fast or not fast_too) else 0
        if late == WINDOWS:
            return True
    return False


if __name__ == "__main__":
    {"failover": failover, "restart": restart, "watch": watch, "busy": busy}[sys.argv[1]]()
