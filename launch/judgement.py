"""What becomes of a finished tuning run: tried, judged against the live version, and sealed with its verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hotpolicy.finetune.candidate import seal_candidate
from hotpolicy.finetune.drafts import draft, settle
from hotpolicy.finetune.gate import judge
from hotpolicy.finetune.outcome import Outcome
from hotpolicy.launch.job import Desk, Event, Job
from hotpolicy.launch.trials import try_tasks
from hotpolicy.runtime.bundle import Bundle, seal_verdict
from hotpolicy.runtime.engine.torch_engine import TorchEngine
from hotpolicy.runtime.policy import Policy
from hotpolicy.runtime.versions.golden import Golden


def judged(desk: Desk, candidates: Path, outcome: Outcome, job: Job) -> Iterator[Event]:
    """Trials, then the sealed candidate with its verdict; without a gate, sealed as it is."""
    chain, lessons, live = desk.chain, desk.lessons, desk.live
    # A policy is made of a bundle, and the bundle to keep has the verdict in it.
    with draft(candidates) as scratch:
        unjudged = seal_candidate(scratch, chain, outcome, lessons, job.config, job.name)
        if not job.gate:
            yield sealed(settle(unjudged, candidates), {"passed": None, "reasons": []})
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
    yield sealed(final, verdict.to_dict())


def sealed(candidate: Bundle, verdict: Mapping[str, Any]) -> Event:
    said = {name: verdict[name] for name in ("passed", "decided_by", "reasons") if name in verdict}
    return {"event": "sealed", "version": candidate.id, "folder": str(candidate.folder), **said}
