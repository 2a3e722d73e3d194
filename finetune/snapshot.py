"""A training run on disk, so that it goes on where it was: exactly, whatever killed it.

One folder per snapshot, written aside and renamed, so that a torn one is never read; the newest is kept. `identity`
says what the run is made of (parent, data, settings): a snapshot of another run is never taken for this one's.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hotpolicy.runtime import durable
from hotpolicy.runtime.errors import TuningError

log = logging.getLogger(__name__)
FACTS, TENSORS = "run.json", "tensors.safetensors"
KEPT_S = 7 * 86_400.0  # a run that was not taken up again for so long is given up


@dataclass(frozen=True)
class Snapshot:
    facts: Mapping[str, Any]  # plain JSON; "step" among them
    tensors: Mapping[str, Tensor]

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.facts["step"])


def home(folder: Path, identity: str) -> Path:
    """Where the snapshots of one run are; to be removed when the run has ended well."""
    return folder / identity[:16]


def save(folder: Path, identity: str, snapshot: Snapshot) -> Path:
    """Durable when it returns; older ones are removed then. Raises TuningError when the disk does not take it."""
    folder, name = home(folder, identity), f"step-{snapshot.step:09d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        durable.require_room(folder, sum(value.nbytes for value in snapshot.tensors.values()))
        fresh = Path(tempfile.mkdtemp(prefix=".snapshot-", dir=folder))
        try:
            save_file({key: value.contiguous() for key, value in snapshot.tensors.items()}, fresh / TENSORS)
            durable.sync_file(fresh / TENSORS)
            content = json.dumps({"identity": identity, **snapshot.facts}, allow_nan=True)
            durable.write_file(fresh / FACTS, content.encode())
            durable.sync_folder(fresh)
            if not (folder / name).exists():
                durable.settle_folder(fresh, folder / name)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        for old in folder.iterdir():
            if old.name != name and old.name.startswith(("step-", ".snapshot-")):
                shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # safetensors has its own for a full disk
        said = durable.reason(error, folder) if isinstance(error, OSError) else error
        raise TuningError(f"{folder}: the training checkpoint cannot be written: {said}") from error
    return folder / name


def newest(folder: Path, identity: str) -> Snapshot | None:
    """The newest one of this run, or None. Raises TuningError for a damaged one."""
    for path in sorted(home(folder, identity).glob("step-*"), reverse=True):
        try:
            facts = json.loads((path / FACTS).read_bytes())
            if facts.pop("identity") != identity:
                raise ValueError("it is of another run")
            return Snapshot(facts, load_file(path / TENSORS))
        except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
            raise TuningError(f"{path}: expected a training checkpoint, remove it to begin again: {error}") from error
    return None


def sweep(folder: Path) -> None:
    """Remove the snapshots of runs that were killed long ago and not given again."""
    for path in folder.glob("*/"):
        if time.time() - path.stat().st_mtime > KEPT_S:
            log.warning("removed %s, of a run that was not taken up again", path)
            shutil.rmtree(path, ignore_errors=True)
