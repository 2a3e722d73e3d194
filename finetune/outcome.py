"""What a tuning run says while it goes on, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass

from hotpolicy.finetune.curves import Curves, Evaluation
from hotpolicy.runtime.model.vla import Vla


@dataclass(frozen=True, slots=True)
class Progress:
    step: int  # done
    steps: int  # planned
    stage: str
    loss: float  # flow loss of the batch
    rate: float
    seconds: float  # since the run began
    gradient: float  # its norm, before it was clipped; nan before the first step
    evaluation: Evaluation | None = None
    note: str = ""  # something a person should know, e.g. that the cache did not fit


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished run leaves. `model` shares what it did not train with the parent."""

    model: Vla
    learned: tuple[str, ...]  # names of the tensors that were trained
    curves: Curves
    step: int  # whose weights these are
    chosen_by: str
    steps: int  # done
    stopped: str  # "steps", "patience", "seconds", or "stage": the next stage was not earned
    seconds: float
    cache_mb: float  # of K/V kept; 0: none
    notes: tuple[str, ...]
