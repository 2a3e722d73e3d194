"""What happens in each step of the demo. `Play` holds the processes and what has been found so far."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.recorder import Recorder
from hotpolicy.launch.charts import Curve, Latency
from hotpolicy.launch.film import Film
from hotpolicy.launch.fleet import Answer, Exam, Fleet, Station, by_verb
from hotpolicy.launch.lesson import Lesson
from hotpolicy.launch.machine import describe_machine
from hotpolicy.launch.nano import SHIPPED, VERBS
from hotpolicy.launch.processes import Child
from hotpolicy.launch.report import Strip
from hotpolicy.launch.rig import Rig
from hotpolicy.launch.rollouts import Score
from hotpolicy.launch.story import Story
from hotpolicy.launch.teleop import LINGER
from hotpolicy.robots.feed import Feed
from hotpolicy.robots.sim.tasks import KNOWN_COLOURS, PHRASES, Task
from hotpolicy.robots.sources import OperatorSource
from hotpolicy.robots.teleop.scripted import ScriptedOperator
from hotpolicy.runtime.client import ControlClient
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import SwapRefused
from hotpolicy.runtime.store import Store

ARMS = 4
BY = "hotpolicy demo"
DEMONSTRATIONS = 24
NEW = [Task("hover", colour) for colour in KNOWN_COLOURS]
HARD = Task("touch", "purple")
OLD = [Task(verb, colour) for verb in VERBS for colour in KNOWN_COLOURS]
HEAD_STEPS, FULL_STEPS = 350, 260
QUIET_S = 4.0  # of load before the swap, to compare with
SETTLE_S = 2.0  # of load after it


class Play:
    """Use as a context manager; the steps in the order of `demo`."""

    def __init__(self, work: Path, out: Path, story: Story, *, seed: int, quick: bool, teleop: str):
        self.work, self.out, self.story = work, out, story
        self.seed, self.quick, self.teleop = seed, quick, teleop
        self.endpoint, self.control_endpoint = f"ipc://{work}/serve", f"ipc://{work}/serve.control"
        self.store = Store(work / "policies")
        self.found: dict[str, Any] = {"hard_task": None, "onnx": None}
        self.curves: list[Curve] = []
        self.strips: list[Strip] = []
        self.moments: list[tuple[float, str]] = []  # (monotonic s, what changed), for the latency chart
        self._stack = ExitStack()

    def __enter__(self) -> Play:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    # ── a, b ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        self.base = self.store.add(SHIPPED)
        self.server = self._serve("torch")
        self.fleet = self._stack.enter_context(Fleet(self.work, ARMS, self.endpoint, self.control_endpoint))
        self.server.wait_ready()
        self.control = self._stack.enter_context(ControlClient(self.control_endpoint))
        first = self.fleet.stations[0].profile
        self.story.say(f"{ARMS} virtual arms, each six STS3215 servos on a pseudo-terminal; the first is {first.port}")
        self.story.say(f"policy server on {self.endpoint}, version {self.base[:8]}, engine torch, one thread")

    def _serve(self, engine: str) -> Child:
        arguments = ["serve", "--store", str(self.store.root), "--endpoint", self.endpoint, "--engine", engine]
        child = Child("policy server", arguments, self.work / "server.log")
        self._stack.callback(child.stop)
        return child

    # ── c, g ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def before(self) -> None:
        self.found["new_task"] = {"name": PHRASES["hover"].format("COLOUR"), "before": self._examine_new("before")}
        self.found["old_tasks"] = {"before": self._examine_old(), "after_without_replay": None}

    def after(self) -> None:
        self.found["new_task"]["after"] = self._examine_new("after")
        self.found["old_tasks"]["after"] = self._examine_old()

    def _examine_new(self, when: str) -> dict[str, int]:
        score = self._sum(self._examine([Exam(t, n, self._scene(1, i)) for i, (t, n) in enumerate(_share(NEW, 50))]))
        self.story.score(PHRASES["hover"].format("COLOUR"), score, "green" if when == "after" else "yellow")
        self.strips.append(self._film(NEW[0].instruction, self._scene(1, 0), when))
        return _counts(score)

    def _examine_old(self) -> dict[str, dict[str, int]]:
        each = 5 if self.quick else 25
        scores = by_verb(self._examine([Exam(task, each, self._scene(2, i)) for i, task in enumerate(OLD)]))
        for verb, score in scores.items():
            self.story.score(PHRASES[verb].format("COLOUR") + ", known before", score)
        return {verb: _counts(score) for verb, score in scores.items()}

    def _examine(self, exams: Sequence[Exam]) -> dict[str, Score]:
        with self.story.bar("episodes", sum(exam.episodes for exam in exams)) as advance:
            return self.fleet.examine(exams, advance)

    def _film(self, task: str, seed: int, when: str) -> Strip:
        film = Film()
        feed = Feed(film, when_full="wait")
        report = self.fleet.stations[0].attempt(task, seed, [feed])
        feed.close()
        return Strip(f"{task}, {when}", film.frames, bool(report.success), self.fleet.stations[0].profile.rate_hz)

    # ── d ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def demonstrate(self) -> None:
        self.dataset = self.out / "demonstrations"
        self.episodes = self._record(self.dataset, NEW, self._scene(3), by_hand=self.teleop == "keyboard")
        self.last_demonstration = now()
        self.story.say(f"{self.episodes} episodes in {self.dataset}, sealed one by one")

    def _record(self, folder: Path, tasks: Sequence[Task], seed: int, by_hand: bool = False) -> int:
        """Record demonstrations of the tasks in turn; how many there are to learn from."""
        shutil.rmtree(folder, ignore_errors=True)
        rig = self.fleet.stations[0].rig
        with Recorder.open(folder, rig.profile.spec) as recorder:
            if by_hand:
                from hotpolicy.launch.teleop import demonstrate_by_keyboard

                demonstrate_by_keyboard(rig, recorder, [t.instruction for t in tasks], DEMONSTRATIONS, seed)
            else:
                self._record_script(rig, recorder, tasks, seed)
        return sum(episode.success is not False for episode in Dataset.open(folder).episodes)

    def _record_script(self, rig: Rig, recorder: Recorder, tasks: Sequence[Task], seed: int) -> None:
        assert rig.world is not None
        feed, operator = Feed(recorder, when_full="wait"), ScriptedOperator(rig.world)
        good = 0  # a failure is recorded as one, and nobody learns from it
        with self.story.bar("episodes", DEMONSTRATIONS) as advance:
            while good < DEMONSTRATIONS:
                task = tasks[good % len(tasks)].instruction
                rig.set_scene(task, seed)
                seed += 1
                good += bool(rig.episode(task, OperatorSource(operator), [feed], linger=LINGER).success)
                advance(to=good)
        feed.close()

    # ── e, f ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def tune(self) -> None:
        self.lesson = self._lesson()
        robot = self.fleet.stations[0]
        with self.fleet.busy([robot], [task.instruction for task in OLD], pause_s=2.0):
            self.lesson.start(
                "hover", self.base, self.dataset, "expert", steps=HEAD_STEPS, seed=self.seed, threads=2, success=0.9
            )

    def _lesson(self) -> Lesson:
        return Lesson(self.work, self.store, self.story)

    def swap(self) -> None:
        version = self._passed(self.lesson)
        first, *others = self.fleet.stations
        with self.fleet.busy(others, [task.instruction for task in OLD]):
            self._episodes(first, QUIET_S)
            began = now()
            self.control.stage(version)
            versions = self._promote_during_episode(first, version)
            serving = now()
            self._episodes(first, SETTLE_S)
        status = self.control.status()["server"]["swap_stall_ms"]
        before = [a for a in self.fleet.answers if began - QUIET_S <= a.sent_at < began]
        during = [a for a in self.fleet.answers if began <= a.sent_at]
        self.found["swap"] = {
            "stall_ms": round(status["last"], 3),
            "p99_ms_before": _p99(before),
            "p99_ms_during": _p99(during),
        }
        self.found["tuning"] = {
            "strategy": "expert",
            "seconds": round(self.lesson.taught.seconds, 2),
            "steps": self.lesson.taught.steps,
            "episodes": self.episodes,
            "frames": self.lesson.taught.frames,
            "demo_to_serving_s": round(serving - self.last_demonstration, 2),
        }
        self.tuned = version
        self.story.say(
            f"one episode was served by {' and then '.join(v[:8] for v in versions)}; {len(during)} requests"
        )
        self.story.say(
            f"the serving thread was held for {status['last']:.3f} ms; p99 {_p99(before):.0f} ms before, "
            f"{_p99(during):.0f} ms from staging to {SETTLE_S:.0f} s after"
        )

    def _promote_during_episode(self, station: Station, version: str) -> Sequence[str]:
        """Make `version` live between two chunks of a running episode; returns the versions that served it."""
        seed = self._scene(5)
        with ThreadPoolExecutor(1) as pool:
            while True:
                asked = station.asked
                episode = pool.submit(station.attempt, NEW[1].instruction, seed)
                while station.asked < asked + 2 and not episode.done():
                    time.sleep(0.001)
                self.control.promote(version, by=BY)
                self._mark(f"swap to {version[:8]}")
                if len(versions := episode.result().versions) > 1:
                    return versions
                self.control.rollback(by=BY)  # the episode was over too soon to show it: once more
                seed += 1

    def _episodes(self, station: Station, seconds: float) -> None:
        until, seed = now() + seconds, self._scene(6)
        while now() < until:
            station.attempt(OLD[seed % len(OLD)].instruction, seed)
            seed += 1

    # ── without replay, h ─────────────────────────────────────────────────────────────────────────────────────────

    def without_replay(self) -> None:
        lesson = self._lesson()
        lesson.start(
            "hover, no replay", self.base, self.dataset, "expert",
            steps=HEAD_STEPS, seed=self.seed, threads=2, replay=0.0, trials=0,
        )  # fmt: skip
        self.curves.append(lesson.finish().curve)
        scores = by_verb(lesson.examine([Exam(task, 25, self._scene(2, i)) for i, task in enumerate(OLD)]))
        for verb, score in scores.items():
            self.story.score(f"{PHRASES[verb].format('COLOUR')}, no replay", score, "red")
        self.found["old_tasks"]["after_without_replay"] = {verb: _counts(score) for verb, score in scores.items()}

    def hard_task(self) -> None:
        exam = [Exam(HARD, 50, self._scene(7))]
        before = self._sum(self._examine(exam))
        self.story.score(f"{HARD.instruction}, before", before, "yellow")
        self.strips.append(self._film(HARD.instruction, self._scene(7), "before"))
        folder = self.out / "demonstrations-purple"
        self._record(folder, [HARD], self._scene(8))
        head = self._lesson()
        head.start("purple, head only", self.tuned, folder, "expert", steps=HEAD_STEPS, seed=self.seed, threads=2)
        self.curves.append(head.finish().curve)
        if not head.taught.passed:
            self.story.say(f"refused by the gate: {'; '.join(head.taught.reasons)}")
        head_score = self._sum(head.examine(exam))
        self.story.score(f"{HARD.instruction}, head only", head_score, "red")
        full = self._lesson()
        full.start("purple, whole model", self.tuned, folder, "full", steps=FULL_STEPS, seed=self.seed, threads=2)
        self.control.swap(version := self._passed(full), by=BY)
        self._mark(f"swap to {version[:8]}")
        after = self._sum(self._examine(exam))
        self.story.score(f"{HARD.instruction}, whole model", after, "green")
        for verb, score in by_verb(
            self._examine([Exam(task, 5, self._scene(2, i)) for i, task in enumerate(OLD)])
        ).items():
            self.story.score(f"{PHRASES[verb].format('COLOUR')}, known before", score)
        self.strips.append(self._film(HARD.instruction, self._scene(7), "after"))
        self.found["hard_task"] = {
            "name": HARD.instruction,
            "before": _counts(before),
            "after_head": _counts(head_score),
            "after_full": _counts(after),
            "full_tuning_seconds": full.taught.seconds,
        }

    def _passed(self, lesson: Lesson) -> str:
        """Wait for the gate's word; the version that passed. Raises SwapRefused with the gate's reasons."""
        taught = lesson.finish()
        self.curves.append(taught.curve)
        if not taught.passed:
            raise SwapRefused(f"{taught.name}: refused by the gate: {'; '.join(taught.reasons)}")
        self.story.say(f"gate: passed, sealed as {taught.version[:8]}, a delta on what it was tuned from")
        return taught.version

    # ── i, j ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def back_and_forward(self) -> None:
        first, *others = self.fleet.stations
        with self.fleet.busy(others, [task.instruction for task in OLD]):
            for direction in ("back", "forward"):
                self.control.rollback(by=BY)
                live = self.control.status()["live"]
                self._mark(f"{direction} to {live[:8]}")
                report = first.attempt(OLD[0].instruction, self._scene(10))
                self.story.say(f"{direction}: version {live[:8]}, and the next episode was served by {report.versions}")
                assert report.versions == (live,), f"expected {live}, got {report.versions}"

    def onnx(self) -> None:
        from hotpolicy.runtime.export import export

        live = self.control.status()["live"]
        shutil.rmtree(self.out / "onnx", ignore_errors=True)
        error = float(export(self.store.chain(live), self.out / "onnx").certificate["max_abs_error"])
        self.story.say(f"version {live[:8]} in {self.out / 'onnx'}: at most {error:.1e} from torch, normalised units")
        self.server.stop()
        self.server = self._serve("onnx")  # on the same socket; the arms' clients find it again by themselves
        self.server.wait_ready()
        score = self._sum(self._examine([Exam(t, 5, self._scene(11, i)) for i, t in enumerate(NEW)]))
        self.story.score("hover, by ONNX Runtime", score, "green")
        self.found["onnx"] = {"max_abs_error": error, **_counts(score)}

    # ── results ───────────────────────────────────────────────────────────────────────────────────────────────────

    def results(self) -> dict[str, Any]:
        answers = self.fleet.answers
        failed = sum(answer.error is not None for answer in answers)
        seen = list(dict.fromkeys(answer.version for answer in answers if answer.version))
        swap = {"sent": len(answers), "answered": len(answers) - failed, "failed": failed, "versions": seen}
        self.found["swap"] |= swap
        return {
            **self.found,
            "wall_s": {**self.story.wall_s, "total": self.story.total()},
            "seed": self.seed,
            "machine": describe_machine(),
        }

    def latency(self) -> Latency:
        answered = [answer for answer in self.fleet.answers if answer.error is None]
        start = answered[0].sent_at
        return Latency(
            [answer.sent_at - start for answer in answered],
            [answer.ms for answer in answered],
            [(at - start, label) for at, label in self.moments],
        )

    def history(self) -> Sequence[Mapping[str, Any]]:
        return [asdict(change) for change in self.store.history()]

    def _scene(self, part: int, index: int = 0) -> int:
        """Where the seeds of a part of the demo begin; parts and --seed never share scenes."""
        return 10_000_000 * (self.seed + 1) + 100_000 * part + 1000 * index

    def _mark(self, label: str) -> None:
        self.moments.append((now(), label))

    @staticmethod
    def _sum(scores: Mapping[str, Score]) -> Score:
        return Score(
            " / ".join(scores),
            sum(score.successes for score in scores.values()),
            sum(score.episodes for score in scores.values()),
        )


def _share(tasks: Sequence[Task], episodes: int) -> list[tuple[Task, int]]:
    """`episodes` in all, spread over the tasks as evenly as it goes."""
    return [(task, episodes // len(tasks) + (index < episodes % len(tasks))) for index, task in enumerate(tasks)]


def _counts(score: Score) -> dict[str, int]:
    return {"successes": score.successes, "episodes": score.episodes}


def _p99(answers: Sequence[Answer]) -> float:
    times = [answer.ms for answer in answers if not math.isnan(answer.ms)]
    return round(float(np.percentile(times, 99)), 2) if times else math.nan
