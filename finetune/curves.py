"""The course of a tuning run: training loss step by step, held-out figures now and then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hotpolicy.finetune.held_out import Figures

KEPT = 120  # points of the training curve in a manifest

ByTask = Mapping[str, Figures]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out figures of the averaged weights after some steps; step 0 is the parent."""

    step: int
    new: ByTask
    old: ByTask  # replayed tasks

    def to_dict(self) -> dict[str, Any]:
        sides = {"new": self.new, "old": self.old}
        return {
            "step": self.step,
            **{side: {name: of.to_dict() for name, of in figures.items()} for side, figures in sides.items()},
        }

    def exactly(self) -> dict[str, Any]:
        """As `to_dict`, and nothing is rounded: `Evaluation.read` gives the same again."""
        sides = {"new": self.new, "old": self.old}
        parts = {side: {name: asdict(of) for name, of in figures.items()} for side, figures in sides.items()}
        return {"step": self.step, **parts}

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Evaluation:
        """Raises KeyError or TypeError for what `exactly` did not write."""
        sides = ({name: Figures(**of) for name, of in data[side].items()} for side in ("new", "old"))
        return cls(data["step"], *sides)


@dataclass(slots=True)
class Curves:
    train: list[float] = field(default_factory=list)  # flow loss of every step's batch
    evaluations: list[Evaluation] = field(default_factory=list)
    chosen: int | None = None  # step whose weights the run leaves; None: the last

    @property
    def parent(self) -> Evaluation:
        return self.evaluations[0]

    @property
    def candidate(self) -> Evaluation:
        """Of the weights the run leaves, which with patience are not those of its last step."""
        return next((at for at in reversed(self.evaluations) if at.step == self.chosen), self.evaluations[-1])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; the training curve as means over equal stretches."""
        stretch = max(1, -(-len(self.train) // KEPT))
        parts = [self.train[start : start + stretch] for start in range(0, len(self.train), stretch)]
        ends = [min((index + 1) * stretch, len(self.train)) for index in range(len(parts))]
        return {
            "train": [[end, round(sum(part) / len(part), 5)] for end, part in zip(ends, parts, strict=True)],
            "held_out": [evaluation.to_dict() for evaluation in self.evaluations],
        }
