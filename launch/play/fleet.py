"""Several virtual arms driven at once by one policy server: success is measured so, and a swap put under load."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hotpolicy.launch.processes import Child
from hotpolicy.launch.rig import Rig
from hotpolicy.launch.rollouts import EXECUTED, Score
from hotpolicy.launch.virtual_arm import virtual_profile
from hotpolicy.robots.feed import Feed
from hotpolicy.robots.loop import EpisodeReport
from hotpolicy.robots.sim.tasks import Task
from hotpolicy.robots.sources import SteppedPolicySource
from hotpolicy.runtime.client import PolicyClient
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import HotpolicyError
from hotpolicy.runtime.messages import ActionChunk, Observation, Rtc

DEADLINE_MS = 5000.0  # time stands still in lock-step, so an answer may take its time on a busy machine


@dataclass(frozen=True, slots=True)
class Answer:
    """One request as its client saw it."""

    sent_at: float  # monotonic s
    ms: float  # until the answer; nan for none
    version: str | None
    error: str | None  # code of the error that came instead


class WatchedClient(PolicyClient):
    """A client that keeps a log of its requests."""

    def __init__(self, endpoint: str, log: list[Answer]):
        super().__init__(endpoint, timeout_s=DEADLINE_MS / 1000)
        self.log = log
        self.answered = 0

    def infer(self, observation: Observation, deadline_ms: float | None = None, rtc: Rtc | None = None) -> ActionChunk:
        began = now()
        try:
            chunk = super().infer(observation, deadline_ms, rtc)
        except HotpolicyError as error:
            self.log.append(Answer(began, float("nan"), None, error.code))
            raise
        self.log.append(Answer(began, (now() - began) * 1000, chunk.version, None))
        self.answered += 1
        return chunk


class Station:
    """One virtual arm in its own process, with driver, camera and policy client here."""

    def __init__(self, folder: Path, number: int, endpoint: str, control: str, log: list[Answer]):
        self.profile = virtual_profile(folder, number, endpoint, control)
        arguments = ["virtual-arm", "--port-link", self.profile.arms[0].port, "--world", str(self.profile.world)]
        self.child = Child(f"virtual arm {number}", arguments, folder / f"arm{number}.log")
        self._log = log
        self._rig: Rig | None = None
        self._client: WatchedClient | None = None

    def open(self) -> None:
        """Wait for the arm's process, then connect and energise."""
        self.child.wait_ready()
        self._rig = Rig.open(self.profile)
        self._rig.arm.torque(True)
        self._client = WatchedClient(self.profile.endpoint, self._log)

    @property
    def rig(self) -> Rig:
        assert self._rig is not None
        return self._rig

    @property
    def asked(self) -> int:
        """Requests answered so far."""
        return 0 if self._client is None else self._client.answered

    def source(self) -> SteppedPolicySource:
        assert self._client is not None
        return SteppedPolicySource(self._client, replan=EXECUTED, deadline_ms=DEADLINE_MS)

    def attempt(self, task: str, seed: int, feeds: Sequence[Feed] = ()) -> EpisodeReport:
        """The policy tries `task` once in the scene of `seed`."""
        self.rig.set_scene(task, seed)
        return self.rig.episode(task, self.source(), feeds)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        if self._rig is not None:
            self._rig.close()
        self.child.stop()


@dataclass(frozen=True, slots=True)
class Exam:
    """A task to be tried `episodes` times, in scenes drawn from `seed` on."""

    task: Task
    episodes: int
    seed: int


class Fleet:
    """Stations used side by side, one thread each. Use as a context manager."""

    def __init__(self, folder: Path, count: int, endpoint: str, control: str):
        self.answers: list[Answer] = []  # of all stations; list.append is atomic
        self.stations = [Station(folder, number, endpoint, control, self.answers) for number in range(count)]

    def __enter__(self) -> Fleet:
        try:
            for station in self.stations:
                station.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        for station in self.stations:
            station.close()

    def examine(self, exams: Sequence[Exam], done: Callable[[], object] = lambda: None) -> dict[str, Score]:
        """Success per instruction. `done` is called after each episode. The scenes depend on the seeds alone."""
        waiting: Iterator[tuple[str, int]] = iter(
            [(exam.task.instruction, exam.seed + index) for exam in exams for index in range(exam.episodes)]
        )
        wins: Counter[str] = Counter()
        lock = threading.Lock()

        def work(station: Station) -> None:
            while True:
                with lock:
                    job = next(waiting, None)
                if job is None:
                    return
                report = station.attempt(*job)
                with lock:
                    wins[job[0]] += bool(report.success)
                    done()

        with ThreadPoolExecutor(len(self.stations)) as pool:
            for finished in [pool.submit(work, station) for station in self.stations]:
                finished.result()
        totals: Counter[str] = Counter()
        for exam in exams:
            totals[exam.task.instruction] += exam.episodes
        return {task: Score(task, wins[task], count) for task, count in totals.items()}

    @contextmanager
    def busy(self, stations: Sequence[Station], tasks: Sequence[str], pause_s: float = 0.0) -> Iterator[None]:
        """Meanwhile these stations go on trying `tasks`, over and over, `pause_s` between episodes."""
        stop = threading.Event()

        def work(number: int, station: Station) -> None:
            seed = 900_000 + 10_000 * number
            while not stop.is_set():
                station.attempt(tasks[seed % len(tasks)], seed)
                seed += 1
                stop.wait(pause_s)

        with ThreadPoolExecutor(max(1, len(stations))) as pool:
            running = [pool.submit(work, number, station) for number, station in enumerate(stations)]
            try:
                yield
            finally:
                stop.set()
            for one in running:
                one.result()


def by_verb(scores: dict[str, Score]) -> dict[str, Score]:
    """Scores of one verb and several colours, added up under the verb."""
    found: dict[str, Score] = {}
    for task, score in scores.items():
        verb = Task.parse(task).verb
        old = found.get(verb, Score(verb, 0, 0))
        found[verb] = Score(verb, old.successes + score.successes, old.episodes + score.episodes)
    return found
