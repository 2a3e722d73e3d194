"""Files of a dataset: a crash or a power cut leaves the old one or the new one, never a piece."""

from __future__ import annotations

import os
from pathlib import Path

from hotpolicy.runtime import durable

RESERVE = 64_000_000  # bytes of a disk that frames never take: what sealing needs, and the rest of the robot


def require_room(folder: Path, size: int = 0) -> None:
    """Raises OSError (no space left) when `size` bytes more would leave less than `RESERVE` free on that disk."""
    durable.require_room(folder, RESERVE + size)


def told(error: Exception, folder: Path) -> str:
    """One line of what a disk refused: the path (`folder` where the error names none), and what was needed and is free
    where that is the trouble."""
    return durable.refusal(error, folder) if isinstance(error, OSError) else str(error)


def put(path: Path, content: bytes) -> None:
    """Write or replace a file in one step, in a folder that is made if need be."""
    make_folder(path.parent)
    durable.replace_file(path, content)


def move(temporary: Path, path: Path) -> None:
    """Make a finished file durable under its name; both lie on one file system."""
    make_folder(path.parent)
    durable.sync_file(temporary)
    os.replace(temporary, path)
    durable.sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, each one durable in its parent."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        durable.sync_folder(folder.parent)
