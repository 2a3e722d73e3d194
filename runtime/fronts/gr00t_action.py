"""GR00T's get_action: what was asked, whatever the envelope and the batch, and the reply in the same. Pure.

N1.5 sends {"video.x": (T, H, W, C), "state.x": (T, D), "annotation...": [text]}, or each with a batch axis before; N1.6
and N1.7 send {"observation": {"video": {x: (B, T, H, W, C)}, "state": {x: (B, T, D)}, "language": {...: [[text]]}},
"options": ...}; their wrapper for simulators puts the names of the first into the envelope of the second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hotpolicy.runtime.errors import BadRequest
from hotpolicy.runtime.fronts.gr00t_codec import Envelope

KINDS = ("video", "state", "language", "action")
PARTS = 64  # of an observation
BATCH = 64  # robots in one request


@dataclass(frozen=True, slots=True)
class Asked:
    """What get_action was sent, in one shape whatever the envelope: the names of N1.5, one map per robot."""

    rows: tuple[dict[str, Any], ...]  # "video.x" -> one picture, "state.x" -> (D,), others -> text
    batched: bool  # whether the arrays had a batch axis, and the reply's therefore have one
    envelope: Envelope
    dotted: bool  # whether the parts were named "state.x", and the reply's therefore are "action.x"


def asked(data: Any) -> Asked:
    """Raises BadRequest naming the key whose place, shape or batch is wrong."""
    values = _mapping(data, "data")
    envelope: Envelope = "nested" if type(values.get("observation")) is dict else "flat"
    if envelope == "nested":
        values = _mapping(values["observation"], "observation")
    dotted = not any(type(values.get(kind)) is dict for kind in KINDS)
    flat = values if dotted else _flatten(values)
    batches = {key: batch for key, value in flat.items() if (batch := _batch(key, value)) is not None}
    sizes = {key: len(rows) for key, rows in batches.items()}
    if len(set(sizes.values())) > 1:
        got = ", ".join(f"{_short(key)} {size}" for key, size in sizes.items())
        raise BadRequest(f"observation: expected one batch size, got {got}")
    count = next(iter(sizes.values()), 1)
    rows = [{key: _row(key, value, batches.get(key), n, count) for key, value in flat.items()} for n in range(count)]
    return Asked(tuple(rows), bool(sizes), envelope, dotted)


def _flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for kind, parts in values.items():
        if kind not in KINDS:
            flat[kind] = parts
            continue
        for key, value in _mapping(parts, kind).items():
            flat[key if kind == "language" else f"{kind}.{key}"] = value
    return flat


def _mapping(value: Any, field: str) -> dict[str, Any]:
    if type(value) is not dict or len(value) > PARTS:
        raise BadRequest(f"{field}: expected a map of the observation's parts, got {type(value).__name__}")
    return value


def _dimensions(key: str) -> int | None:
    """How many axes one moment of this part has; None: it is no array."""
    return {"video": 3, "state": 1}.get(key.partition(".")[0])


def _batch(key: str, value: Any) -> np.ndarray | None:
    """A batch of one moment each (B, ...), where this part is one."""
    axes = _dimensions(key)
    if axes is None or not isinstance(value, np.ndarray) or value.ndim != axes + 2:
        return None
    if not 1 <= value.shape[0] <= BATCH:
        raise BadRequest(f"{_short(key)}: expected a batch of 1 to {BATCH}, got {value.shape}")
    return _moment(key, value, 1)


def _moment(key: str, value: np.ndarray, axis: int) -> np.ndarray:
    if value.shape[axis] != 1:
        raise BadRequest(f"{_short(key)}: expected one moment, got {value.shape[axis]} in {value.shape}")
    return value[:, 0] if axis else value[0]


def _row(key: str, value: Any, batch: np.ndarray | None, n: int, count: int) -> Any:
    """What part `key` is for robot `n` of the batch."""
    if batch is not None:
        return batch[n]
    if (axes := _dimensions(key)) is not None:
        one_moment = isinstance(value, np.ndarray) and value.ndim == axes + 1
        return _moment(key, value, 0) if one_moment else value
    while type(value) is list and value:  # a text per robot, each in a list of moments, or one for all
        value = value[n] if len(value) == count else value[0]
        n, count = 0, 1
    return value


def answer(parts: Sequence[Mapping[str, np.ndarray]], info: dict[str, Any], asked: Asked) -> Any:
    """The reply to get_action: each part (T, D) of each robot, named, batched and wrapped as it was asked for."""
    names = {key: key if asked.dotted else key.removeprefix("action.") for key in parts[0]}
    if asked.batched:
        action = {name: np.stack([row[key] for row in parts]) for key, name in names.items()}
    else:
        action = {name: parts[0][key] for key, name in names.items()}
    return [action, info] if asked.envelope == "nested" else action


def _short(key: str) -> str:
    """A client's key, safe to print on one line."""
    return ascii(key[:80])[1:-1]
