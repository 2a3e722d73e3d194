"""What the demo measures: success on the new, the old and the hard task, always in the same scenes for one seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from hotpolicy.launch.nano import VERBS
from hotpolicy.launch.play.film import Film
from hotpolicy.launch.play.fleet import Answer, Exam, Fleet, by_verb
from hotpolicy.launch.play.report import Strip
from hotpolicy.launch.play.story import Story
from hotpolicy.launch.rollouts import Score, share
from hotpolicy.robots.feed import Feed
from hotpolicy.robots.sim.tasks import KNOWN_COLOURS, PHRASES, Task

NEW = [Task("hover", colour) for colour in KNOWN_COLOURS]
HARD = Task("touch", "purple")
OLD = [Task(verb, colour) for verb in VERBS for colour in KNOWN_COLOURS]
EPISODES = 50  # of the new task, and of the hard one
EACH, EACH_QUICK = 25, 5  # of each old skill and colour


class Examiner:
    """Measures whatever policy the server serves now."""

    def __init__(self, fleet: Fleet, story: Story, seed: int, quick: bool):
        self.fleet, self.story = fleet, story
        self.seed, self.each = seed, EACH_QUICK if quick else EACH

    def scene(self, part: int, index: int = 0) -> int:
        """Where the seeds of a part of the demo begin; parts, and runs with another --seed, never share scenes."""
        return 10_000_000 * (self.seed + 1) + 100_000 * part + 1000 * index

    def new(self, colour: str) -> Score:
        exams = [Exam(task, count, self.scene(1, i)) for i, (task, count) in enumerate(share(NEW, EPISODES))]
        score = total(self.examine(exams))
        self.story.score(PHRASES["hover"].format("COLOUR"), score, colour)
        return score

    def old_exams(self) -> list[Exam]:
        return [Exam(task, self.each, self.scene(2, index)) for index, task in enumerate(OLD)]

    def old(self) -> dict[str, Score]:
        """Under each verb; printed."""
        return self.tell_old(self.examine(self.old_exams()), "known before")

    def tell_old(self, scores: dict[str, Score], label: str, colour: str = "") -> dict[str, Score]:
        found = by_verb(scores)
        for verb, score in found.items():
            self.story.score(f"{PHRASES[verb].format('COLOUR')}, {label}", score, colour)
        return found

    def hard_exam(self) -> list[Exam]:
        return [Exam(HARD, EPISODES, self.scene(7))]

    def examine(self, exams: Sequence[Exam]) -> dict[str, Score]:
        with self.story.bar("episodes", sum(exam.episodes for exam in exams)) as advance:
            return self.fleet.examine(exams, advance)

    def film(self, task: Task, seed: int, when: str) -> Strip:
        """One more episode, with the camera's pictures kept."""
        film, station = Film(), self.fleet.stations[0]
        feed = Feed(film, when_full="wait")
        report = station.attempt(task.instruction, seed, [feed])
        feed.close()
        return Strip(f"{task.instruction}, {when}", film.frames, bool(report.success), station.profile.rate_hz)


def total(scores: Mapping[str, Score]) -> Score:
    return Score(
        " / ".join(scores),
        sum(score.successes for score in scores.values()),
        sum(score.episodes for score in scores.values()),
    )


def counts(score: Score) -> dict[str, int]:
    return {"successes": score.successes, "episodes": score.episodes}


def p99(answers: Sequence[Answer]) -> float:
    """Slowest percent of the answered requests, ms; nan when there are none."""
    times = [answer.ms for answer in answers if not math.isnan(answer.ms)]
    return round(float(np.percentile(times, 99)), 2) if times else math.nan
