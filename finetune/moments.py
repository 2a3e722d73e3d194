"""What the optimiser of the run that made a version remembered, kept beside the store for the next run from there.

A convenience, not a part of any version: a file that is missing or damaged means that the next run's optimiser begins
anew. Only the newest is kept, for it may be twice as large as what learns.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hotpolicy.runtime import durable

log = logging.getLogger(__name__)


def save(folder: Path, version: str, moments: Mapping[str, Tensor]) -> None:
    """Replaces what was kept of another version. A disk that does not take it is logged: the version matters more."""
    path = folder / f"{version}.safetensors"
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in moments.items()}, fresh)
        durable.sync_file(fresh)
        os.replace(fresh, path)
        for old in folder.iterdir():
            if old != path:
                old.unlink()
    except (OSError, SafetensorError) as error:  # safetensors has its own for a full disk
        log.warning("%s: optimiser state not kept: %s", folder, error)
        fresh.unlink(missing_ok=True)


def load(folder: Path, version: str) -> dict[str, Tensor] | None:
    """Of the run that made this version; None when it was not kept."""
    path = folder / f"{version}.safetensors"
    if not path.exists():
        return None
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        log.warning("%s: damaged, the optimiser begins anew: %s", path, error)
        return None
