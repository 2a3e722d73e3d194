"""Which strategy a tuning job takes: the one asked for if it fits this machine, or one that is chosen."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

from hotpolicy.finetune.budget import PREFERENCE, choose
from hotpolicy.finetune.frames import Frames
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.launch.job import Desk, Event, Job, oddities
from hotpolicy.launch.planning import Option, check, names, survey, to_dict
from hotpolicy.runtime.errors import TuningError

AUTO = "auto"  # a strategy to be chosen
LOOKED_AT = 32  # frames, among which are two of the longest instructions


def survey_of(job: Job) -> list[Option]:
    """What every strategy would take for this job; nothing is trained."""
    desk = Desk.open(job)
    return list(_survey(desk, job.config, names(desk.engine.model)))


def settle_strategy(job: Job, desk: Desk) -> Generator[Event, None, TuneConfig]:
    """The settings, with a strategy chosen where that was left open; `plan` for each that was looked at. Raises
    TuningError for what does not fit this machine."""
    config, advised = job.config, job.config.strategy
    wanted: Sequence[str] = [advised]
    if advised == AUTO:
        report = desk.assess(oddities(job.datasets, desk.live.spec))
        if report.strategy is None:
            raise TuningError(report.advice[0])
        yield {"event": "advice", "lines": report.advice}
        advised, wanted = report.strategy, list(dict.fromkeys([report.strategy, *PREFERENCE]))
    options = list(_survey(desk, config, wanted))
    plans = [option.plan for option in options]
    chosen = choose(plans, job.seconds, advised) if config.strategy == AUTO else plans[0]
    for option in options:
        yield to_dict(option, chosen)
    if chosen is None:
        raise TuningError("strategy: none fits the memory, or the time; --plan shows what each would take")
    check(next(option for option in options if option.plan is chosen))
    return chosen.config


def _survey(desk: Desk, config: TuneConfig, wanted: Sequence[str]) -> Iterator[Option]:
    lessons = desk.lessons
    watched = (lessons.new_held_out, lessons.old_held_out)
    total = sum(len(part) for part in (lessons.new, lessons.old) if part is not None)
    total += sum(min(len(part), config.watched) for part in watched if part is not None)
    some = Frames.encode(lessons.new.spread(LOOKED_AT), desk.live.transforms)
    return survey(desk.engine.model, some, total, config, wanted)
