"""The rehearsal set a bundle carries: frames of the tasks it knows, so that learning a new one keeps them.

A delta inherits the set of the version it changes, or brings a larger one with frames of what it learned.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hotpolicy.finetune.samples import Samples, join
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.npz import read_npz

FILE = "rehearsal.npz"
ARRAYS = ("images", "state", "actions", "tasks")


def rehearsal_of(chain: Sequence[Bundle]) -> Samples | None:
    """The set of the version at the end of a chain: its own, or the nearest it inherits; None when there is none.
    Raises BundleError when it is damaged or not of this robot."""
    for bundle in reversed(chain):
        if FILE in bundle.manifest.files:
            return load_rehearsal(bundle.file(FILE), len(chain[0].manifest.spec.joints))
    return None


def load_rehearsal(path: Path, joints: int | None = None) -> Samples:
    """Read `rehearsal.npz`. Raises BundleError naming the array that is missing or not what it should be."""
    arrays = read_npz(path, ARRAYS, "rehearsal frames")
    if fault := _fault(arrays, joints):
        raise BundleError(f"{path}: {fault}")
    return Samples(**arrays)


def rehearsal_bytes(samples: Samples) -> bytes:
    """The content of `rehearsal.npz`, compressed; the same samples give the same bytes. Raises BundleError."""
    arrays = {name: getattr(samples, name) for name in ARRAYS}
    if fault := _fault(arrays, None):
        raise BundleError(f"{FILE}: {fault}")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def extend(old: Samples | None, new: Samples, per_task: int) -> Samples:
    """`old`, and up to `per_task` frames of each task of `new`: what the next version should rehearse. A task that was
    rehearsed already gives half of its room to the new frames, so that the set does not grow with every round."""
    kept = [] if old is None else [_of(old, name) for name in old.task_names() if name not in new.task_names()]
    for name in new.task_names():
        before = None if old is None else _of(old, name)
        room = per_task if not before else max(per_task, len(before))
        if before:
            kept.append(before.spread(room // 2))
        kept.append(_of(new, name).spread(room - room // 2 if before else room))
    return join(kept)


def _of(samples: Samples, task: str) -> Samples:
    return samples.pick(samples.tasks == task)


def _fault(arrays: dict[str, np.ndarray], joints: int | None) -> str:
    images, state, actions, tasks = (arrays[name] for name in ARRAYS)
    n = len(tasks) if tasks.ndim == 1 and tasks.dtype.kind == "U" else 0
    wide = state.shape[1] if state.ndim == 2 else -1
    checks = (
        ("tasks", tasks, n > 0, "(n,) fixed-width unicode, n > 0"),
        ("images", images, images.dtype == np.uint8 and images.ndim == 5 and images.shape[-1] == 3, "5-d uint8 RGB"),
        ("state", state, state.dtype == np.float32 and wide == (joints or wide), f"(n, {joints or 'joints'}) float32"),
        ("actions", actions, actions.dtype == np.float32 and actions.ndim == 3, "(n, horizon, joints) float32"),
        ("actions", actions, actions.shape[-1] == wide, f"{wide} joints, as in state"),
    )
    for name, array, right, expected in checks:
        if not right or len(array) != n:
            return f"{name}: expected {expected}, got {array.dtype} {array.shape}"
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return f"{name}: expected finite numbers, got NaN or infinity"
    return ""
