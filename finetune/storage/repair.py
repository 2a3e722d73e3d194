"""Mends a dataset: whatever is whole goes into a new folder, which then takes the old one's place.

Rule 1: nothing that was sealed is changed or removed. The folder as it was stays beside the mended one, as
`NAME.before-repair`; files that need no change are shared between the two, so the copy costs little.
Rule 2: the new folder is checked, every byte, before the two change places.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from hotpolicy.finetune.storage import layout
from hotpolicy.finetune.storage.disk import make_folder, told
from hotpolicy.finetune.storage.inspection import check
from hotpolicy.finetune.storage.mending import CLOSED, Plan, beside, plan
from hotpolicy.finetune.storage.rebuilding import Builder
from hotpolicy.runtime import durable
from hotpolicy.runtime.errors import DatasetError


def carry_out(made: Plan, drop: bool = False) -> Path | None:
    """Do it; returns where the folder as it was is now (None: nothing sealed had to change).

    Raises DatasetError when episodes would have to be taken out and `drop` does not say so, when a recorder has the
    folder open, or when the result is not whole: then nothing has changed.
    """
    root = made.root
    if made.damaged and not drop:
        names = "; ".join(line for line in made.lines() if line.startswith("take out"))
        raise DatasetError(f"{root}: nothing was changed; to mend it, --drop must allow to {names}")
    if made.damaged and not made.keep:
        raise DatasetError(f"{root}: nothing was changed: no episode of it is whole")
    with _alone(root):
        if not made.rebuilds:
            for file in made.found.leftovers:
                (root / file).unlink(missing_ok=True)
            return None
        fresh = beside(root, "repair")
        shutil.rmtree(fresh, ignore_errors=True)  # of a repair that was killed
        try:
            Builder(made, fresh).build()
            if wrong := check(fresh)[1]:
                raise DatasetError(f"{root}: nothing was changed: the mended copy has {wrong[0].file}: {wrong[0].what}")
        except OSError as error:
            raise DatasetError(f"{root}: nothing was changed ({told(error, root)})") from error
        finally:
            if not (fresh / layout.INFO).exists():
                shutil.rmtree(fresh, ignore_errors=True)
        before = _free_name(root)
        os.rename(root, before)
        os.rename(fresh, root)
        durable.sync_folder(root.parent)
    return before


@contextmanager
def planned(root: Path, keep_altered: bool = False) -> Iterator[Plan]:
    """`plan`, and at the end whatever it needed beside the folder is gone."""
    try:
        yield plan(root, keep_altered)
    finally:
        shutil.rmtree(beside(root, CLOSED), ignore_errors=True)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    try:
        make_folder(root / layout.WORK)
        with filelock.FileLock(root / layout.WORK / "lock", timeout=0):
            yield
    except filelock.Timeout as error:
        raise DatasetError(f"{root}: a recorder has it open") from error


def _free_name(root: Path) -> Path:
    names = [f"{root.name}.before-repair", *(f"{root.name}.before-repair-{i}" for i in range(2, 1000))]
    return next(root.with_name(name) for name in names if not root.with_name(name).exists())
