"""A fleet teaches one learner and takes the version back: what docs/scale.md says, done by eight virtual robots.

    python bench/fleet.py                        # 8 robots, 3 episodes each of a task that they do not know

Each robot has a store, a server process and a client that asks it all the time and changes version between episodes.
Demonstrations are made straight in a World. One robot cannot be reached while the version is handed out and catches up
later; one has another base, refuses, and stays as it was. "Sending" is copying files on this machine, and counted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from hovering import record_hovering

from hotpolicy.finetune.storage.layout import INFO, WORK
from hotpolicy.launch.nano import SHIPPED
from hotpolicy.launch.rollouts import Score, rollout
from hotpolicy.robots.sim.tasks import Task
from hotpolicy.runtime.bundle import Bundle, seal_verdict
from hotpolicy.runtime.client import ControlClient, PolicyClient
from hotpolicy.runtime.clock import Rate, now
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.errors import HotpolicyError, SwapRefused
from hotpolicy.runtime.messages import Observation
from hotpolicy.runtime.policy import load_policy
from hotpolicy.runtime.server import PolicyServer
from hotpolicy.runtime.serving.control import Control
from hotpolicy.runtime.slot import Slot
from hotpolicy.runtime.store import Store
from hotpolicy.runtime.versions.golden import Golden
from hotpolicy.runtime.versions.loader import load_with

RATE_HZ = 4.0  # chunks that each robot asks for
EPISODE = 10  # of them to an episode
SCENES = 800_000_000  # of the canary's check: none of them was demonstrated
# The server processes are forked from one that has imported torch already: eight imports would be most of the run.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["hotpolicy.runtime.server", "hotpolicy.runtime.engine.torch_engine"])


@dataclass
class Robot:
    folder: Path
    sent: int = 0  # bytes of episodes, to the learner
    got: int = 0  # bytes of the version
    before: str = ""
    after: str = ""
    swap_ms: float = float("nan")
    word: str = ""  # what happened to it

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    @property
    def endpoint(self) -> str:
        return f"ipc://{self.folder}/s"

    @property
    def control(self) -> str:
        return f"ipc://{self.folder}/s.control"

    def take(self, version: Path) -> None:
        """The sealed folder arrives, is added to the store and swapped in; or this robot refuses it."""
        self.got += ship(version, self.folder / "incoming" / version.name, "manifest.json")
        self.store.add(self.folder / "incoming" / version.name)
        started = now()
        with ControlClient(self.control) as client:
            try:
                client.swap(version.name, by="fleet", request_id=f"give-{version.name}")
                self.word = "swapped"
            except SwapRefused as error:
                self.word = f"refused: {str(error).split(':')[0]}"
        self.swap_ms = 1000 * (now() - started)

    def live(self) -> str:
        with ControlClient(self.control) as client:
            return str(next(row["id"] for row in client.versions()["versions"] if row["role"] == "live"))


@dataclass
class Tally:
    """What one robot's client saw."""

    sent: int = 0
    lost: Counter[str] = field(default_factory=Counter)  # by error
    versions: Counter[str] = field(default_factory=Counter)  # chunks of each
    mixed: int = 0  # episodes that saw more than one version


def ship(source: Path, target: Path, last: str) -> int:
    """Copy what is not there in this size and of this time, `last` after everything else -> bytes copied."""
    files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    copied = 0
    for name in sorted((name for name in files if WORK not in name.parts), key=lambda name: name.as_posix() == last):
        here, there = (source / name).stat(), target / name
        if there.exists() and (there.stat().st_size, there.stat().st_mtime_ns) == (here.st_size, here.st_mtime_ns):
            continue
        there.parent.mkdir(parents=True, exist_ok=True)
        fresh = there.with_name(f".{there.name}.part")
        shutil.copy2(source / name, fresh)
        os.replace(fresh, there)
        copied += here.st_size
    return copied


def record(robot: Robot, number: int, episodes: int) -> None:
    """`episodes` of hovering, in scenes that no other robot sees."""
    spec = Bundle.open(SHIPPED).manifest.spec
    record_hovering(robot.folder / "data", spec, episodes, scene=10_000 * (number + 1), colour=number)


def serve(root: str, endpoint: str) -> None:
    store = Store(root)
    slot = Slot(store, load_with("torch", threads=1))
    PolicyServer(ServeConfig(endpoint=endpoint), slot, Control(slot, store)).run()


def drive(endpoints: Sequence[str], observation: Observation, ready: Event, stop: Event, out: Any) -> None:
    """All robots' clients, a thread each, until told to stop."""
    tallies = [Tally() for _ in endpoints]
    waiting = threading.Barrier(len(endpoints), action=ready.set)

    def ask(endpoint: str, tally: Tally) -> None:
        seen: set[str] = set()
        with PolicyClient(endpoint, timeout_s=10, boundary="episode") as client:
            client.wait_ready(120)
            waiting.wait()
            rate = Rate(RATE_HZ)
            while not stop.is_set():
                rate.wait()
                if tally.sent % EPISODE == 0:
                    client.new_episode()
                    tally.mixed += len(seen) > 1
                    seen = set()
                tally.sent += 1
                try:
                    chunk = client.infer(observation)
                except HotpolicyError as error:
                    tally.lost[error.code] += 1
                    continue
                tally.versions[chunk.version] += 1
                seen.add(chunk.version)

    threads = [threading.Thread(target=ask, args=pair) for pair in zip(endpoints, tallies, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    out.send(tallies)


@contextmanager
def serving(robots: Sequence[Robot]) -> Iterator[None]:
    processes = [CONTEXT.Process(target=serve, args=(str(robot.folder / "store"), robot.endpoint)) for robot in robots]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(20)


@contextmanager
def asking(robots: Sequence[Robot], tallies: list[Tally]) -> Iterator[None]:
    """Begins once every robot is answered; `tallies` are filled at the end."""
    bundle = Bundle.open(SHIPPED)
    golden = Golden.of_chain([bundle])
    assert golden is not None
    observation = golden.observations(bundle.manifest.spec)[0]
    ready, stop = CONTEXT.Event(), CONTEXT.Event()
    ours, theirs = CONTEXT.Pipe(duplex=False)
    ends = [robot.endpoint for robot in robots]
    process = CONTEXT.Process(target=drive, args=(ends, observation, ready, stop, theirs))
    process.start()
    try:
        if not ready.wait(120):
            raise SystemExit("the servers were not ready within 120 s")
        yield
        stop.set()
        tallies += ours.recv()
    finally:
        stop.set()
        process.join(20)


def learn(store: Path, datasets: Sequence[Path], steps: int) -> Path:
    """`hotpolicy finetune` on all of them -> the folder of the sealed delta. So few steps would not pass the gate: here
    the canary alone decides."""
    command = [sys.executable, "-m", "hotpolicy.launch.cli", "finetune", *map(str, datasets), "--store", str(store)]
    command += ["--steps", str(steps), "--save-every", "0", "--no-gate", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    sealed = [event for event in map(json.loads, done.stdout.splitlines()) if event["event"] == "sealed"]
    if done.returncode or not sealed:
        raise SystemExit(f"the learner gave no version: {sealed}")
    return Path(sealed[0]["folder"])


def tried(robot: Robot, episodes: int) -> Score:
    """The live version of this robot's store, at the new task."""
    store = robot.store
    policy = load_policy(store.chain(store.live()), device="cpu", dtype="fp32", threads=1)
    return rollout(policy, Task("hover", "red"), episodes, SCENES)


def foreign_base(folder: Path) -> Path:
    """The shipped policy sealed by somebody else: the same weights under another name."""
    return seal_verdict(Bundle.open(SHIPPED), folder, {"note": "sealed elsewhere"}).folder


def set_up(folder: Path, count: int, episodes: int) -> list[Robot]:
    """The last one has another base."""
    robots = [Robot(folder / f"robot{number}") for number in range(count)]
    for number, robot in enumerate(robots):
        robot.folder.mkdir()
        base = foreign_base(robot.folder) if number == count - 1 else SHIPPED
        robot.store.promote(robot.store.add(base), by="bench", request_id="first")
        record(robot, number, episodes)
    return robots


@dataclass
class Outcome:
    robots: list[Robot]
    tallies: list[Tally]
    scores: tuple[Score, Score]  # of the canary, before and after
    phases: dict[str, float]  # s


def run(folder: Path, count: int, episodes: int, steps: int, trials: int, bar: float) -> Outcome:
    """The canary is the first robot. The last but one cannot be reached at first, where there are three or more."""
    phases, started = dict[str, float](), now()

    def lap(name: str) -> None:
        nonlocal started
        phases[name], started = now() - started, now()

    robots, tallies = set_up(folder, count, episodes), list[Tally]()
    lap("record")
    with serving(robots), asking(robots, tallies):
        lap("start servers")
        for robot in robots:
            robot.before = robot.live()
            robot.sent = ship(robot.folder / "data", folder / "learner" / robot.name, INFO)
        lap("episodes to the learner")
        store = Store(folder / "learner" / "store")
        store.promote(store.add(SHIPPED), by="bench", request_id="first")
        version = learn(store.root, [folder / "learner" / robot.name for robot in robots], steps)
        lap("tune and seal")
        canary, offline = robots[0], robots[-2:-1] if count > 2 else []
        zero_shot = tried(canary, trials)
        canary.take(version)
        score = tried(canary, trials)
        lap("canary: swap and try")
        if score.rate < bar:
            with ControlClient(canary.control) as client:
                client.rollback(by="fleet", request_id=f"back-{version.name}")
            raise SystemExit(f"the canary succeeded {score.successes} of {score.episodes} times: rolled back")
        canary.word = f"canary, {score.successes} of {score.episodes}"
        for robot in robots[1:]:
            if robot not in offline:
                robot.take(version)
        lap("the others")
        for robot in offline:
            assert robot.live() == robot.before
            robot.take(version)
            robot.word += ", caught up later"
        lap("the one that was away")
        threading.Event().wait(2 * EPISODE / RATE_HZ)  # every client begins another episode
        for robot in robots:
            robot.after = robot.live()
        lap("two more episodes")
    return Outcome(robots, tallies, (zero_shot, score), phases)


def show(outcome: Outcome) -> None:
    print("| robot | before | after | swap, ms | asked, lost | chunks of the new | episodes of two | sent, got: KB | |")
    print("|-|-|-|-|-|-|-|-|-|")
    for robot, tally in zip(outcome.robots, outcome.tallies, strict=True):
        fresh = tally.versions[robot.after] if robot.after != robot.before else 0
        cells = [robot.name, robot.before[:8], robot.after[:8], f"{robot.swap_ms:.0f}"]
        cells += [f"{tally.sent}, {tally.lost.total()}", str(fresh), str(tally.mixed)]
        cells += [f"{robot.sent / 1000:.0f}, {robot.got / 1000:.0f}", robot.word]
        print("| " + " | ".join(cells) + " |")
    before, after = outcome.scores
    print(f"the canary at {after.task!r}: {before.successes} of {before.episodes} before, {after.successes} after")
    print(", ".join(f"{name} {seconds:.1f}" for name, seconds in outcome.phases.items()), end=" s; ")
    print(f"together {sum(outcome.phases.values()):.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--robots", type=int, default=8)
    parser.add_argument("--episodes", type=int, default=3, help="of each robot")
    parser.add_argument("--steps", type=int, default=150, help="of the learner")
    parser.add_argument("--trials", type=int, default=8, help="episodes of the canary's check")
    parser.add_argument("--bar", type=float, default=0.5, help="success rate that the canary must reach")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        show(run(Path(folder), options.robots, options.episodes, options.steps, options.trials, options.bar))
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(f"{machine}, load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
