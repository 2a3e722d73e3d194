"""What happens in each step of the demo. `Play` holds the processes and what has been found so far."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hotpolicy.launch.machine import describe_machine
from hotpolicy.launch.nano import SHIPPED
from hotpolicy.launch.play.charts import Curve, Latency
from hotpolicy.launch.play.classroom import demonstrate
from hotpolicy.launch.play.examiner import HARD, NEW, OLD, Examiner, counts, p99, total
from hotpolicy.launch.play.fleet import Exam, Fleet, Station
from hotpolicy.launch.play.lesson import Lesson
from hotpolicy.launch.play.report import Strip
from hotpolicy.launch.play.story import Story
from hotpolicy.launch.processes import Child
from hotpolicy.launch.rollouts import Score
from hotpolicy.robots.sim.tasks import PHRASES
from hotpolicy.runtime.client import ControlClient
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import SwapRefused
from hotpolicy.runtime.store import Store

ARMS = 4
BY = "hotpolicy demo"
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
        self.exam = Examiner(self.fleet, self.story, self.seed, self.quick)
        first = self.fleet.stations[0].profile
        self.story.say(
            f"{ARMS} virtual arms, each six STS3215 servos on a pseudo-terminal; the first is {first.arms[0].port}"
        )
        self.story.say(f"policy server on {self.endpoint}, version {self.base[:8]}, engine torch, one thread")

    def _serve(self, engine: str) -> Child:
        arguments = ["serve", "--store", str(self.store.root), "--endpoint", self.endpoint, "--engine", engine]
        child = Child("policy server", arguments, self.work / "server.log")
        self._stack.callback(child.stop)
        return child

    # ── c, d, g ───────────────────────────────────────────────────────────────────────────────────────────────────

    def before(self) -> None:
        self.found["new_task"] = {"name": PHRASES["hover"].format("COLOUR"), "before": counts(self.exam.new("yellow"))}
        self.strips.append(self.exam.film(NEW[0], self.exam.scene(1), "before"))
        self.found["old_tasks"] = {"before": _by_task(self.exam.old()), "after_without_replay": None}

    def demonstrate(self) -> None:
        rig, by_hand = self.fleet.stations[0].rig, self.teleop == "keyboard"
        self.dataset = self.out / ("demonstrations-by-hand" if by_hand else "demonstrations")
        self.episodes = demonstrate(rig, self.dataset, NEW, self.exam.scene(3), self.story, by_hand)
        self.last_demonstration = now()
        self.story.say(f"{self.episodes} episodes in {self.dataset}, sealed one by one")

    def after(self) -> None:
        self.found["new_task"]["after"] = counts(self.exam.new("green"))
        self.strips.append(self.exam.film(NEW[0], self.exam.scene(1), "after"))
        self.found["old_tasks"]["after"] = _by_task(self.exam.old())

    # ── e, f ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def tune(self) -> None:
        self.lesson = self._lesson()
        robot = self.fleet.stations[0]
        with self.fleet.busy([robot], [task.instruction for task in OLD], pause_s=2.0):
            self.lesson.start(
                "hover", self.base, self.dataset, "expert", steps=HEAD_STEPS, seed=self.seed, threads=2, success=0.9
            )

    def _lesson(self) -> Lesson:
        lesson = Lesson(self.work, self.store, self.story)
        self._stack.callback(lesson.stop)  # whatever ends the demo ends its tuning
        return lesson

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
            "p99_ms_before": p99(before),
            "p99_ms_during": p99(during),
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
            f"the serving thread was held for {status['last']:.3f} ms; p99 {p99(before):.0f} ms before, "
            f"{p99(during):.0f} ms from staging to {SETTLE_S:.0f} s after"
        )

    def _promote_during_episode(self, station: Station, version: str) -> Sequence[str]:
        """Make `version` live between two chunks of a running episode; returns the versions that served it."""
        seed = self.exam.scene(5)
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
        until, seed = now() + seconds, self.exam.scene(6)
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
        scores = self.exam.tell_old(lesson.examine(self.exam.old_exams()), "no replay", "red")
        self.found["old_tasks"]["after_without_replay"] = _by_task(scores)

    def hard_task(self) -> None:
        exam = self.exam.hard_exam()
        before = total(self.exam.examine(exam))
        self.story.score(f"{HARD.instruction}, before", before, "yellow")
        self.strips.append(self.exam.film(HARD, self.exam.scene(7), "before"))
        folder = self.out / "demonstrations-purple"
        demonstrate(self.fleet.stations[0].rig, folder, [HARD], self.exam.scene(8), self.story)
        head = self._lesson()
        head.start("purple, head only", self.tuned, folder, "expert", steps=HEAD_STEPS, seed=self.seed, threads=2)
        self.curves.append(head.finish().curve)
        if not head.taught.passed:
            self.story.say(f"refused by the gate: {'; '.join(head.taught.reasons)}")
        head_score = total(head.examine(exam))
        self.story.score(f"{HARD.instruction}, head only", head_score, "red")
        full = self._lesson()
        full.start("purple, whole model", self.tuned, folder, "full", steps=FULL_STEPS, seed=self.seed, threads=2)
        self.control.swap(version := self._passed(full), by=BY)
        self._mark(f"swap to {version[:8]}")
        after = total(self.exam.examine(exam))
        self.story.score(f"{HARD.instruction}, whole model", after, "green")
        self.exam.old()
        self.strips.append(self.exam.film(HARD, self.exam.scene(7), "after"))
        self.found["hard_task"] = {
            "name": HARD.instruction,
            "before": counts(before),
            "after_head": counts(head_score),
            "after_full": counts(after),
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
                report = first.attempt(OLD[0].instruction, self.exam.scene(10))
                served = ", ".join(version[:8] for version in report.versions)
                self.story.say(f"{direction}: version {live[:8]}, and the next episode was served by {served}")
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
        score = total(self.exam.examine([Exam(t, 5, self.exam.scene(11, i)) for i, t in enumerate(NEW)]))
        self.story.score("hover, by ONNX Runtime", score, "green")
        self.found["onnx"] = {"max_abs_error": error, **counts(score)}

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

    def _mark(self, label: str) -> None:
        self.moments.append((now(), label))


def _by_task(scores: Mapping[str, Score]) -> dict[str, dict[str, int]]:
    return {task: counts(score) for task, score in scores.items()}
