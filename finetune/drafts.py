"""Where a candidate is made before it has a name: one hidden folder that a kill may leave, and a later run removes."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hotpolicy.runtime import durable
from hotpolicy.runtime.bundle import Bundle

log = logging.getLogger(__name__)
DRAFT = ".draft-"


@contextmanager
def draft(candidates: Path) -> Iterator[Path]:
    """A folder beside the candidates, so that what is sealed in it needs only another name; gone afterwards. Those of
    runs that were killed are removed first."""
    candidates.mkdir(parents=True, exist_ok=True)
    with _held(candidates):  # a new one has its owner before another run looks at it
        _sweep(candidates)
        fresh = Path(tempfile.mkdtemp(prefix=DRAFT, dir=candidates))
        owner = os.open(fresh, os.O_RDONLY)
        fcntl.flock(owner, fcntl.LOCK_EX)
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        os.close(owner)


def settle(sealed: Bundle, candidates: Path) -> Bundle:
    """Give a bundle sealed in a draft its place among the candidates."""
    final = candidates / sealed.id
    durable.settle_folder(sealed.folder, final)
    return Bundle.open(final, expect=sealed.id)


def _sweep(candidates: Path) -> None:
    for left in (*candidates.glob(f"{DRAFT}*"), *candidates.glob(".seal-*")):
        try:
            with _held(left, fcntl.LOCK_NB):
                shutil.rmtree(left)
        except (BlockingIOError, FileNotFoundError):  # policy: its run lives, or is just ending
            continue
        log.warning("removed %s, left by a run that was killed", left)


@contextmanager
def _held(folder: Path, how: int = 0) -> Iterator[None]:
    """The folder's lock, which ends with the process that has it, however that does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | how)
        yield
    finally:
        os.close(descriptor)
