"""The account of a checkpoint: every tensor of the file and every parameter of the model, by part and by fate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.model.pi0 import Pi0, Pi0Config
from hotpolicy.runtime.model.weights import TIED_HEAD, Plan, part
from hotpolicy.runtime.versions.tensor_file import Entry

DTYPES = ("F32", "BF16")  # what the engines compute with, or widen without loss
PARTS = {
    "vision": "vision",
    "projector": "projector",
    "embedding": "embedding",
    "language": "language layers",
    "expert": "action expert",
    "heads": "projections",
}
NAMED = 5  # faults named in one message; the rest are counted


@dataclass(frozen=True, slots=True)
class Row:
    """Counts of one part. A tied or known-dead tensor is not loaded a second time."""

    part: str
    parameters: int = 0  # loaded
    loaded: int = 0  # tensors, from here on
    tied: int = 0
    known_dead: int = 0
    unknown: int = 0
    missing: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def account(entries: Mapping[str, Entry], plan: Plan) -> list[Row]:
    """One row for each part, a row for what belongs to none, and the sum."""
    counts = {
        name: dict.fromkeys(("parameters", "loaded", "tied", "known_dead", "unknown", "missing"), 0) for name in PARTS
    }
    for key, ours in plan.names.items():
        counts[_part(ours)]["parameters"] += entries[key].parameters
        counts[_part(ours)]["loaded"] += 1
    counts["embedding"]["tied"] = len(plan.tied)
    for key in plan.dead:
        counts["embedding" if key.endswith(TIED_HEAD) else "expert"]["known_dead"] += 1
    for ours in plan.missing.values():
        counts[_part(ours)]["missing"] += 1
    rows = [Row(PARTS[name], **count) for name, count in counts.items()]
    if plan.unknown:
        rows.append(Row("none of these", unknown=len(plan.unknown)))
    total = {name: sum(getattr(row, name) for row in rows) for name in next(iter(counts.values()))}
    return [*rows, Row("all", **total)]


def check_complete(path: Path, plan: Plan) -> None:
    """Raises BundleError naming what is missing and what is unknown."""
    family = "pi0.5" if plan.pi05 else "pi0"
    faults = [
        f"{len(keys)} {kind}: {_list(keys)}"
        for kind, keys in (("missing", tuple(plan.missing)), ("unknown", plan.unknown))
        if keys
    ]
    if faults:
        raise BundleError(f"{path}: not a whole {family} checkpoint; {'; '.join(faults)}")


def check_tensors(path: Path, entries: Mapping[str, Entry], plan: Plan, config: Pi0Config) -> None:
    """Each tensor against the model it is for. Raises BundleError naming the tensor, what was expected and found."""
    with torch.device("meta"):
        expected = {name: tuple(parameter.shape) for name, parameter in Pi0(config).named_parameters()}
    assert set(expected) == set(plan.names.values())
    for key, ours in plan.names.items():
        entry = entries[key]
        if entry.dtype not in DTYPES:
            raise BundleError(f"{path}: tensor {key}: expected dtype {' or '.join(DTYPES)}, got {entry.dtype}")
        if entry.shape != expected[ours]:
            raise BundleError(f"{path}: tensor {key}: expected shape {expected[ours]}, got {entry.shape}")


def _part(ours: str) -> str:
    """As people count: the expert's last norm is the expert's, though it is tuned with the heads."""
    return "expert" if ours.startswith("expert_norm.") else part(ours).partition(".")[0]


def _list(keys: tuple[str, ...]) -> str:
    return ", ".join(keys[:NAMED]) + (f" and {len(keys) - NAMED} more" if len(keys) > NAMED else "")
