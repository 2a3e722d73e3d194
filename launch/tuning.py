"""One tuning job as plain events: gather, train, seal, judge, and add to the store what passed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import torch

from hotpolicy.finetune import moments
from hotpolicy.finetune import snapshot as snapshots
from hotpolicy.finetune.budget import PREFERENCE, choose
from hotpolicy.finetune.candidate import candidate_of, seal_candidate
from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.drafts import draft, settle
from hotpolicy.finetune.findings import Finding, look_through
from hotpolicy.finetune.frames import Frames
from hotpolicy.finetune.gate import Bounds, judge
from hotpolicy.finetune.lessons import Lessons, Span, gather
from hotpolicy.finetune.outcome import Outcome, Progress
from hotpolicy.finetune.ranks import Ranks
from hotpolicy.finetune.relevance import Relevance, assess
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.finetune.sources import PrefixHome
from hotpolicy.finetune.strategy import PREFIX
from hotpolicy.finetune.trainer import Trainer
from hotpolicy.launch.planning import Option, check, names, survey, to_dict
from hotpolicy.launch.trials import try_tasks
from hotpolicy.launch.versions import open_store
from hotpolicy.runtime.bundle import Bundle, seal_verdict
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.engine.torch_engine import TorchEngine
from hotpolicy.runtime.errors import TuningError
from hotpolicy.runtime.messages import RobotSpec
from hotpolicy.runtime.model.vla import Vla
from hotpolicy.runtime.policy import Policy, load_policy
from hotpolicy.runtime.store import Store
from hotpolicy.runtime.versions.golden import Golden

Event = dict[str, Any]
AUTO = "auto"  # a strategy to be chosen
WHOLE = Span()
LOCK_S = 60.0  # for a job of the same name to end
LOOKED_AT = 32  # frames, among which are two of the longest instructions


@dataclass(frozen=True, slots=True)
class Job:
    store: Path
    base: str  # a version's id, or "live"
    datasets: tuple[Path, ...]
    config: TuneConfig
    threads: int
    gate: bool  # judge it; without, it is sealed and not added to the store
    trials: int  # episodes of each task's success check
    bounds: Bounds
    save_every: float  # seconds between training checkpoints; 0: none
    seconds: float | None = None  # for all steps, where a strategy is to be chosen
    replayed: tuple[Path, ...] = ()  # datasets of older tasks
    span: Span = WHOLE  # of the first dataset
    carry: bool = False  # the optimiser's state, from the run that made the base and for the next one
    name: str | None = None  # a job of a name that has its candidate is not done again


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
            yield _sealed(done, verdict)
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
    config = yield from _settled(job, desk)
    home = PrefixHome(store.root / "prefixes", _sight_digest(chain, desk.engine.model))
    remembered = moments.load(store.root / "moments", chain[-1].id) if job.carry else None
    trainer = Trainer(desk.engine.model, live.transforms, live.spec, lessons, config, home, ranks, remembered)
    training, identity = store.root / "training", _identity(chain, lessons, config)
    snapshots.sweep(training)
    yield from _train(trainer, job, training, identity)
    remembered = trainer.learner.moments() if job.carry else None  # by all processes: each may have a part
    if not ranks.first:
        return
    outcome, candidates = trainer.outcome, store.root / "candidates"
    yield {"event": "trained", "seconds": round(outcome.seconds, 2), "steps": outcome.steps, "notes": outcome.notes}
    with _written(store.root):
        event: Event = {}
        for event in _judged(desk, candidates, outcome, replace(job, config=config)):
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
        raise TuningError(f"{path}: cannot be written: {error.strerror or error}") from error


@dataclass(frozen=True)
class Desk:
    """What a job works on: the parent in memory, and what is to be learned."""

    store: Store
    chain: list[Bundle]
    live: Policy
    lessons: Lessons

    @classmethod
    def open(cls, job: Job) -> Desk:
        torch.set_num_threads(job.threads)
        store = open_store(job.store)
        chain = store.chain(store.live() if job.base == "live" else job.base)
        live = load_policy(chain, device="cpu", dtype="fp32", threads=job.threads)
        lessons = gather(chain, job.datasets, job.replayed, span=job.span)
        return cls(store, chain, live, lessons)

    @property
    def engine(self) -> TorchEngine:
        assert isinstance(self.live.engine, TorchEngine)
        return self.live.engine

    def assess(self, found: Sequence[Finding]) -> Relevance:
        """The demonstrations against what the policy knows; `found` is what is odd about them by themselves."""
        live, lessons = self.live, self.lessons
        return assess(self.engine.model, live.transforms, live.spec, lessons.new, lessons.old, found)


def oddities(datasets: Sequence[Path], spec: RobotSpec) -> list[Finding]:
    return [finding for root in datasets for finding in look_through(Dataset.open(root), spec)]


def survey_of(job: Job) -> list[Option]:
    """What every strategy would take for this job; nothing is trained."""
    desk = Desk.open(job)
    return list(_survey(desk, job.config, names(desk.engine.model)))


def _settled(job: Job, desk: Desk) -> Generator[Event, None, TuneConfig]:
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


def _judged(desk: Desk, candidates: Path, outcome: Outcome, job: Job) -> Iterator[Event]:
    """Trials, then the sealed candidate with its verdict; without a gate, sealed as it is."""
    chain, lessons, live = desk.chain, desk.lessons, desk.live
    # A policy is made of a bundle, and the bundle to keep has the verdict in it.
    with draft(candidates) as scratch:
        unjudged = seal_candidate(scratch, chain, outcome, lessons, job.config, job.name)
        if not job.gate:
            yield _sealed(settle(unjudged, candidates), {"passed": None, "reasons": []})
            return
        engine = TorchEngine(outcome.model.eval(), place=desk.engine.place)
        candidate = Policy(unjudged, engine, live.files, live.transforms)
        tried = []
        if job.trials:
            old = lessons.old.task_names() if lessons.old is not None else ()
            for trial in try_tasks(candidate, live, lessons.new.task_names(), old, job.trials):
                tried.append(trial)
                yield {"event": "trial", **trial.to_dict()}
        golden = Golden.of_chain(chain) or Golden.blank(live.spec, live.horizon, width=live.width)
        verdict = judge(candidate, live, golden, outcome.curves, tried, job.bounds)
        final = settle(seal_verdict(unjudged, scratch, verdict.to_dict()), candidates)
    yield _sealed(final, verdict.to_dict())


def _sealed(candidate: Bundle, verdict: Mapping[str, Any]) -> Event:
    said = {name: verdict[name] for name in ("passed", "decided_by", "reasons") if name in verdict}
    return {"event": "sealed", "version": candidate.id, "folder": str(candidate.folder), **said}


def _identity(chain: Sequence[Bundle], lessons: Lessons, config: TuneConfig) -> str:
    """Of a run: what it starts from, what it learns from, and how."""
    parts = [chain[-1].digest, [asdict(source) for source in lessons.sources], config.to_dict()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _sight_digest(chain: Sequence[Bundle], model: Vla) -> str:
    """Of all weights that make prefixes."""
    groups, digests = model.groups(), {}
    for bundle in chain:
        digests.update({name: info.sha256 for name, info in bundle.manifest.tensors.items()})
    sight = {name: digest for name, digest in digests.items() if groups[name].partition(".")[0] in PREFIX}
    return hashlib.sha256(json.dumps(sight, sort_keys=True).encode()).hexdigest()
