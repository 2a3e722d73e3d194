"""The play: its processes, and what has been found so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hotpolicy.launch.machine import describe_machine
from hotpolicy.launch.nano import SHIPPED
from hotpolicy.launch.play.charts import Curve, Latency
from hotpolicy.launch.play.examiner import Examiner
from hotpolicy.launch.play.fleet import Fleet
from hotpolicy.launch.play.lesson import Lesson
from hotpolicy.launch.play.report import Strip
from hotpolicy.launch.play.story import Story
from hotpolicy.launch.processes import Child
from hotpolicy.runtime.client import ControlClient
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import SwapRefused
from hotpolicy.runtime.store import Store

ARMS = 4
BY = "hotpolicy demo"


class Play:
    """Use as a context manager; `start`, and then the acts in the order of `demo`."""

    # What an act leaves for those after it.
    dataset: Path  # of demonstrations
    episodes: int  # in it to learn from
    last_demonstration: float  # monotonic s
    lesson: Lesson
    tuned: str  # version

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

    def start(self) -> None:
        """Server and arms; returns when all of them are ready."""
        self.base = self.store.add(SHIPPED)
        self.server = self.serve("torch")
        self.fleet = self._stack.enter_context(Fleet(self.work, ARMS, self.endpoint, self.control_endpoint))
        self.server.wait_ready()
        self.control = self._stack.enter_context(ControlClient(self.control_endpoint))
        self.exam = Examiner(self.fleet, self.story, self.seed, self.quick)
        first = self.fleet.stations[0].profile
        self.story.say(
            f"{ARMS} virtual arms, each six STS3215 servos on a pseudo-terminal; the first is {first.arms[0].port}"
        )
        self.story.say(f"policy server on {self.endpoint}, version {self.base[:8]}, engine torch, one thread")

    def serve(self, engine: str) -> Child:
        """A policy server of the play's store, in a process that ends with the play."""
        arguments = ["serve", "--store", str(self.store.root), "--endpoint", self.endpoint, "--engine", engine]
        child = Child("policy server", arguments, self.work / "server.log")
        self._stack.callback(child.stop)
        return child

    def new_lesson(self) -> Lesson:
        """A tuning run that is yet to be started."""
        lesson = Lesson(self.work, self.store, self.story)
        self._stack.callback(lesson.stop)  # whatever ends the demo ends its tuning
        return lesson

    def passed(self, lesson: Lesson) -> str:
        """Wait for the gate's word; the version that passed. Raises SwapRefused with the gate's reasons."""
        taught = lesson.finish()
        self.curves.append(taught.curve)
        if not taught.passed:
            raise SwapRefused(f"{taught.name}: refused by the gate: {'; '.join(taught.reasons)}")
        self.story.say(f"gate: passed, sealed as {taught.version[:8]}, a delta on what it was tuned from")
        return taught.version

    def mark(self, label: str) -> None:
        """What changed just now, for the latency chart."""
        self.moments.append((now(), label))

    def results(self) -> dict[str, Any]:
        """What was found, with the keys of `results.SCHEMA`."""
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
