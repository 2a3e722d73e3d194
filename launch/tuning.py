"""One tuning job as plain events: gather, train, seal, judge, and add to the store what passed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import filelock

from hotpolicy.finetune import moments
from hotpolicy.finetune import snapshot as snapshots
from hotpolicy.finetune.candidate import candidate_of
from hotpolicy.finetune.outcome import Progress
from hotpolicy.finetune.ranks import Ranks
from hotpolicy.finetune.sources import PrefixHome
from hotpolicy.finetune.trainer import Trainer
from hotpolicy.launch.choice import settle_strategy
from hotpolicy.launch.job import Desk, Event, Job, identity_of, sight_digest
from hotpolicy.launch.judgement import judged, sealed
from hotpolicy.launch.versions import open_store
from hotpolicy.runtime import durable
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import TuningError

LOCK_S = 60.0  # for a job of the same name to end


def tune(job: Job) -> Iterator[Event]:
    """`begin`, perhaps `advice`, `plan`, perhaps `resumed`, `step` for every step, `trained`, `trial` for each task
    tried, and `sealed` with the candidate's folder and the verdict. A job that was killed and is given again goes on
    after its last checkpoint; one with a name that was done already only says `sealed`. Under torchrun every process
    computes its part of each batch, and the first one alone goes on to seal and judge."""
    ranks = Ranks.join()
    if job.name is None:
        yield from _run(job, ranks)
        return
    if ranks.size > 1:
        raise TuningError("job: a named one is for a single process")
    store = open_store(job.store)
    home = store.root / "training"
    with ExitStack() as held:
        with _written(home):
            home.mkdir(parents=True, exist_ok=True)
            try:  # one that lost its parent may be ending yet
                held.enter_context(filelock.FileLock(home / f"{job.name}.lock", timeout=LOCK_S))
            except filelock.Timeout as error:
                raise TuningError(f"{job.name}: another process is at this job") from error
        if done := candidate_of(store.root / "candidates", job.name):
            verdict = done.manifest.verdict
            assert verdict is not None
            if verdict["passed"]:
                with _written(store.root):
                    store.add(done.folder)
            yield sealed(done, verdict)
            return
        yield from _run(job, ranks)


def _run(job: Job, ranks: Ranks) -> Iterator[Event]:
    desk = Desk.open(job)
    store, chain, live, lessons = desk.store, desk.chain, desk.live, desk.lessons
    yield {
        "event": "begin",
        "base": chain[-1].id,
        "frames": len(lessons.new),
        "episodes": sum(len(source.episodes) for source in lessons.sources),
        "held_out_episodes": sum(len(source.held_out) for source in lessons.sources),
        "fresh_frames": lessons.fresh,
    }
    config = yield from settle_strategy(job, desk)
    home = PrefixHome(store.root / "prefixes", sight_digest(chain, desk.engine.model))
    remembered = moments.load(store.root / "moments", chain[-1].id) if job.carry else None
    trainer = Trainer(desk.engine.model, live.transforms, live.spec, lessons, config, home, ranks, remembered)
    training, identity = store.root / "training", identity_of(chain, lessons, config)
    snapshots.sweep(training)
    yield from _train(trainer, job, training, identity)
    remembered = trainer.learner.moments() if job.carry else None  # by all processes: each may have a part
    if not ranks.first:
        return
    outcome, candidates = trainer.outcome, store.root / "candidates"
    yield {"event": "trained", "seconds": round(outcome.seconds, 2), "steps": outcome.steps, "notes": outcome.notes}
    with _written(store.root):
        event: Event = {}
        for event in judged(desk, candidates, outcome, replace(job, config=config)):
            if event["event"] != "sealed":
                yield event
        if event["passed"]:
            if remembered is not None:
                moments.save(store.root / "moments", event["version"], remembered)
            store.add(Path(event["folder"]))
    _forget(training, identity)
    yield event


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """A disk that does not take what is written there is one line, not a trace."""
    try:
        yield
    except OSError as error:
        path = error.filename2 or error.filename or folder
        raise TuningError(f"{path}: cannot be written: {durable.reason(error, Path(path))}") from error


def _train(trainer: Trainer, job: Job, folder: Path, identity: str) -> Iterator[Event]:
    begin = snapshots.newest(folder, identity) if job.save_every else None
    if begin:
        yield {"event": "resumed", "step": begin.step}
    saved = now()
    for progress in trainer.run(begin):
        if trainer.learner.saves and job.save_every and trainer.learner.agreed(now() - saved > job.save_every):
            snapshot = trainer.snapshot()
            if trainer.ranks.first:
                snapshots.save(folder, identity, snapshot)
            saved = now()
        yield _step(progress)


def _forget(folder: Path, identity: str) -> None:
    """The run has ended well: what it would have gone on from is of no more use."""
    shutil.rmtree(snapshots.home(folder, identity), ignore_errors=True)


def _step(progress: Progress) -> Event:
    return {
        "event": "step",
        "step": progress.step,
        "steps": progress.steps,
        "stage": progress.stage,
        "loss": None if progress.loss != progress.loss else round(progress.loss, 5),
        "rate": progress.rate,
        "gradient": None if progress.gradient != progress.gradient else round(progress.gradient, 5),
        "seconds": round(progress.seconds, 2),
        "held_out": progress.evaluation.to_dict() if progress.evaluation else None,
        "note": progress.note,
    }
