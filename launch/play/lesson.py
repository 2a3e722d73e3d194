"""A tuning run of the demo: `hotpolicy finetune` in its own process, followed line by line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hotpolicy.launch.play.charts import Curve
from hotpolicy.launch.play.fleet import Exam
from hotpolicy.launch.play.story import Story
from hotpolicy.launch.processes import Child
from hotpolicy.launch.rollouts import Score, rollout
from hotpolicy.launch.tuning_lines import held_out_line, mean_over_tasks
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.errors import TuningError
from hotpolicy.runtime.policy import load_policy
from hotpolicy.runtime.store import Store

SILENCE_S = 120.0  # a tuning process that says nothing for so long is lost


@dataclass
class Taught:
    """What a tuning run has said so far."""

    name: str
    frames: int = 0
    steps: int = 0
    seconds: float = 0.0
    version: str = ""
    folder: Path = Path()
    passed: bool | None = None
    reasons: Sequence[str] = ()
    train: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)

    @property
    def curve(self) -> Curve:
        steps, losses = zip(*self.train, strict=True) if self.train else ((), ())
        held_steps, held = zip(*self.held_out, strict=True) if self.held_out else ((), ())
        return Curve(self.name, steps, losses, held_steps, held)


class Lesson:
    """One run. `start` returns when the weights are trained, `finish` when the gate has spoken."""

    def __init__(self, work: Path, store: Store, story: Story):
        self.work, self.store, self.story = work, store, story
        self.child: Child | None = None

    def start(
        self,
        name: str,
        base: str,
        dataset: Path,
        strategy: str,
        *,
        steps: int,
        seed: int,
        threads: int,
        replay: float = 0.5,
        trials: int = 20,
        success: float = 0.8,
    ) -> Taught:
        """Start the process and follow it until the weights are trained."""
        arguments = [
            "finetune", str(dataset), "--store", str(self.store.root), "--base", base, "--strategy", strategy,
            "--steps", str(steps), "--seed", str(seed), "--threads", str(threads), "--replay", str(replay),
            "--trials", str(trials), "--success", str(success), "--json",
            "--gate" if trials else "--no-gate",
        ]  # fmt: skip
        self.child = Child(f"tuning of {name}", arguments, self.work / "tuning.log")
        self.taught = Taught(name)
        self._events = follow(self.child)
        with self.story.bar("tuning", steps) as advance:
            for event in self._events:
                self._note(event, advance)
                if event["event"] == "trained":
                    break
        return self.taught

    def finish(self) -> Taught:
        """Follow it to the end: trials, verdict, seal."""
        for event in self._events:
            self._note(event, lambda *_, **__: None)
        self.stop()
        return self.taught

    def stop(self) -> None:
        """End the process if it is still there."""
        if self.child is not None:
            self.child.stop()

    def examine(self, exams: Sequence[Exam]) -> dict[str, Score]:
        """Success of the candidate, called directly: it is not one that any server would serve."""
        candidate = Bundle.open(self.taught.folder)
        assert candidate.manifest.parent is not None
        policy = load_policy([*self.store.chain(candidate.manifest.parent), candidate])
        scores: dict[str, Score] = {}
        with self.story.bar("episodes", sum(exam.episodes for exam in exams)) as advance:
            for exam in exams:
                score = rollout(policy, exam.task, exam.episodes, exam.seed)
                scores[score.task] = score
                for _ in range(exam.episodes):
                    advance()
        return scores

    def _note(self, event: dict[str, Any], advance: Callable[..., None]) -> None:
        taught = self.taught
        match event["event"]:
            case "begin":
                taught.frames = event["frames"]
                self.story.say(
                    f"{event['episodes']} episodes, {event['frames']} frames; "
                    f"{event['held_out_episodes']} more episodes held out"
                )
            case "step":
                if event["loss"] is not None:
                    taught.train.append((event["step"], event["loss"]))
                    advance(f"loss {event['loss']:.3f}", event["step"])
                if event["held_out"]:
                    new = event["held_out"]["new"]
                    if new:
                        taught.held_out.append((event["step"], mean_over_tasks(new, "loss")))
                    self.story.say(held_out_line(event))
            case "trained":
                taught.seconds, taught.steps = event["seconds"], event["steps"]
                self.story.say(f"{taught.steps} steps in {taught.seconds:.1f} s")
            case "trial":
                live = "" if event["live"] is None else f" (live {event['live']:.2f})"
                self.story.say(f"gate: {event['task']} {event['successes']}/{event['episodes']}{live}")
            case "sealed":
                taught.version, taught.folder = event["version"], Path(event["folder"])
                taught.passed, taught.reasons = event["passed"], event["reasons"]


def follow(child: Child) -> Iterator[dict[str, Any]]:
    """The events of a tuning process until it ends. Raises TuningError with its last words when it ends too early."""
    count, last = 0, ""
    while (line := child.next_line(count, SILENCE_S)) is not None:
        count += 1
        event = json.loads(line)
        last = event["event"]
        yield event
    if last != "sealed":
        raise TuningError(f"{child.name} ended early: {child.last_words()}")
