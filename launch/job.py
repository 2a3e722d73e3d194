"""A tuning job: what is asked for, and what it works on once its version and its datasets are open."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.findings import Finding, look_through
from hotpolicy.finetune.gate import Bounds
from hotpolicy.finetune.lessons import Lessons, Span, gather
from hotpolicy.finetune.relevance import Relevance, assess
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.finetune.strategy import PREFIX
from hotpolicy.launch.versions import open_store
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.engine.torch_engine import TorchEngine
from hotpolicy.runtime.messages import RobotSpec
from hotpolicy.runtime.model.vla import Vla
from hotpolicy.runtime.policy import Policy, load_policy
from hotpolicy.runtime.store import Store

Event = dict[str, Any]
WHOLE = Span()


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


def identity_of(chain: Sequence[Bundle], lessons: Lessons, config: TuneConfig) -> str:
    """Of a run: what it starts from, what it learns from, and how."""
    parts = [chain[-1].digest, [asdict(source) for source in lessons.sources], config.to_dict()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def sight_digest(chain: Sequence[Bundle], model: Vla) -> str:
    """Of all weights that make prefixes."""
    groups, digests = model.groups(), {}
    for bundle in chain:
        digests.update({name: info.sha256 for name, info in bundle.manifest.tensors.items()})
    sight = {name: digest for name, digest in digests.items() if groups[name].partition(".")[0] in PREFIX}
    return hashlib.sha256(json.dumps(sight, sort_keys=True).encode()).hexdigest()
