"""From a finished tuning run to a sealed delta: what changed, where it came from, and what it should rehearse next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hotpolicy.finetune.lessons import Lessons
from hotpolicy.finetune.outcome import Outcome
from hotpolicy.finetune.replay import FILE, extend, rehearsal_bytes
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.runtime.bundle import Bundle, seal
from hotpolicy.runtime.engine.torch_weights import tensor_to_numpy
from hotpolicy.runtime.versions.chain import resolve

REHEARSED = 60  # frames of each new task that later runs will replay


def seal_candidate(
    folder: Path,
    chain: Sequence[Bundle],
    outcome: Outcome,
    lessons: Lessons,
    config: TuneConfig,
    job: str | None = None,
) -> Bundle:
    """Seal a delta on the version at the end of `chain` into `folder/<id>`, without a verdict: `seal_verdict` gives
    it one. Only tensors that really changed go in. `job` is a name by which `candidate_of` finds it again. Raises
    BundleError for weights that are not finite."""
    parent = chain[-1]
    return seal(
        folder,
        kind="delta",
        parent=parent.id,
        model=parent.manifest.model,
        tensors=changed_tensors(chain, outcome),
        spec=parent.manifest.spec,
        transforms=parent.manifest.transforms,
        provenance={**_provenance(outcome, lessons, config), **({"job": job} if job else {})},
        files={FILE: rehearsal_bytes(extend(lessons.rehearsal, lessons.new, REHEARSED))},
    )


def candidate_of(folder: Path, job: str) -> Bundle | None:
    """The candidate of this job that was sealed and judged, if there is one in `folder`."""
    for path in sorted(folder.glob("[!.]*/manifest.json")):
        bundle = Bundle.open(path.parent)
        if bundle.manifest.verdict is not None and bundle.manifest.provenance.get("job") == job:
            return bundle
    return None


def changed_tensors(chain: Sequence[Bundle], outcome: Outcome) -> dict[str, np.ndarray]:
    learned = dict.fromkeys(outcome.learned)  # the rest of a large parent is not read again
    before = resolve(chain, learned)
    after = {  # trained in fp32, kept in the precision the version has
        name: tensor_to_numpy(tensor).astype(before[name].dtype, copy=False)
        for name, tensor in outcome.model.named_parameters()
        if name in learned
    }
    return {name: after[name] for name in learned if not np.array_equal(before[name], after[name])}


def _provenance(outcome: Outcome, lessons: Lessons, config: TuneConfig) -> Mapping[str, Any]:
    return {
        "made_by": "hotpolicy finetune",
        "strategy": config.strategy,
        "config": config.to_dict(),
        "datasets": [{**asdict(source), "root": Path(source.root).name} for source in lessons.sources],
        "frames": len(lessons.new),
        "replayed_frames": len(lessons.old) if lessons.old is not None and config.replay > 0 else 0,
        "steps": outcome.steps,
        "weights_of_step": outcome.step,
        "chosen_by": outcome.chosen_by,
        "stopped": outcome.stopped,
        "seconds": round(outcome.seconds, 2),
        "notes": list(outcome.notes),
        "curves": outcome.curves.to_dict(),
    }
