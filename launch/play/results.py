"""What a run of the demo found: the exact keys of report.json, and the bars it has to reach."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hotpolicy.launch.success import rate
from hotpolicy.runtime.errors import ConfigError

Results = Mapping[str, Any]

# A field is one of these words, a mapping of fields, or a one-entry mapping {"*": field} for keys of any name.
# A question mark allows null: what a quick run leaves out is written as null, never left out.
_RATE = {"successes": "whole", "episodes": "whole"}
_BY_TASK = {"*": _RATE}
_BEFORE_AFTER = {"name": "text", "before": _RATE, "after": _RATE}
SCHEMA: dict[str, Any] = {
    "new_task": _BEFORE_AFTER,
    "hard_task?": {
        "name": "text",
        "before": _RATE,
        "after_head": _RATE,
        "after_full": _RATE,
        "full_tuning_seconds": "number",
    },
    "old_tasks": {"before": _BY_TASK, "after": _BY_TASK, "after_without_replay?": _BY_TASK},
    "tuning": {
        "strategy": "text",
        "seconds": "number",
        "steps": "whole",
        "episodes": "whole",
        "frames": "whole",
        "demo_to_serving_s": "number",
    },
    "swap": {
        "stall_ms": "number",
        "p99_ms_before": "number",
        "p99_ms_during": "number",
        "sent": "whole",
        "answered": "whole",
        "failed": "whole",
        "versions": "texts",
    },
    "onnx?": {"max_abs_error": "number", **_RATE},
    "wall_s": {"total": "number", "*": "number"},
    "seed": "whole",
    "machine": {"*": "text"},
}


def check_results(data: Results) -> None:
    """Raises ConfigError naming the first key that is missing, unknown or of the wrong kind."""
    _check(data, SCHEMA, "")
    old = data["old_tasks"]
    for when in ("after", "after_without_replay"):
        if old[when] is not None and set(old[when]) != set(old["before"]):
            raise ConfigError(f"report: old_tasks.{when}: expected the tasks {', '.join(old['before'])}")
    if not old["before"]:
        raise ConfigError("report: old_tasks.before: expected at least one task")


def _check(value: object, field: Any, where: str) -> None:
    if isinstance(field, str):
        if not _KINDS[field][1](value):
            raise ConfigError(f"report: {where}: expected {_KINDS[field][0]}, got {value!r}")
        return
    if not isinstance(value, Mapping):
        raise ConfigError(f"report: {where or 'data'}: expected a mapping, got {type(value).__name__}")
    known = {name.rstrip("?"): (inner, name.endswith("?")) for name, inner in field.items() if name != "*"}
    for name, (inner, optional) in known.items():
        path = f"{where}.{name}" if where else name
        if name not in value:
            raise ConfigError(f"report: {path}: missing")
        if not (optional and value[name] is None):
            _check(value[name], inner, path)
    for name in (name for name in value if name not in known):
        path = f"{where}.{name}" if where else str(name)
        if "*" not in field:
            raise ConfigError(f"report: {path}: unknown key")
        _check(value[name], field["*"], path)
    if field == _RATE and not 0 <= value["successes"] <= value["episodes"] > 0:
        raise ConfigError(f"report: {where}: expected 0 <= successes <= episodes and episodes > 0, got {dict(value)}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_KINDS = {
    "text": ("text", lambda value: isinstance(value, str)),
    "texts": ("a list of texts", lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value)),
    "whole": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "number": ("a finite number", _is_number),
}


@dataclass(frozen=True, slots=True)
class Bar:
    """One figure the run has to reach."""

    name: str
    value: str  # what this run found, with its unit
    wanted: str
    met: bool


def bars(data: Results) -> list[Bar]:
    """Every bar this run was measured against; steps that were left out have none."""
    new, old, tuning, swap = data["new_task"], data["old_tasks"], data["tuning"], data["swap"]
    lost = sum(rate(old["before"][task]) - rate(old["after"][task]) for task in old["before"]) / len(old["before"])
    unanswered = swap["failed"] + max(0, swap["sent"] - swap["answered"] - swap["failed"])
    found = [
        _at_most("new task before tuning", rate(new["before"]), 0.10, ""),
        _at_least("new task after tuning", rate(new["after"]), 0.95),
        _at_most("tuning time", tuning["seconds"], 60, "s"),
        _at_most("old tasks, mean loss of success", lost, 0.05, ""),
        _at_most("last demonstration to new version serving", tuning["demo_to_serving_s"], 90, "s"),
        _at_most("requests lost or failed", unanswered, 0, ""),
        _at_most("stall of the serving thread at the swap", swap["stall_ms"], 5, "ms"),
    ]
    if hard := data["hard_task"]:
        found.append(_at_most("hard task, head only", rate(hard["after_head"]), 0.50, ""))
        found.append(_at_least("hard task, full tuning", rate(hard["after_full"]), 0.90))
        found.append(_at_most("full tuning time", hard["full_tuning_seconds"], 120, "s"))
    if onnx := data["onnx"]:
        found.append(_at_most("ONNX against torch, normalised actions", onnx["max_abs_error"], 1e-4, ""))
    quick = data["hard_task"] is None and data["onnx"] is None
    found.append(_at_most("the whole run", data["wall_s"]["total"], 180 if quick else 480, "s"))
    return found


def _at_most(name: str, value: float, limit: float, unit: str) -> Bar:
    unit = f" {unit}" if unit else ""
    return Bar(name, f"{value:.3g}{unit}", f"at most {limit:g}{unit}", value <= limit)


def _at_least(name: str, value: float, limit: float) -> Bar:
    return Bar(name, f"{value:.3g}", f"at least {limit:g}", value >= limit)
