"""A folder in use is held, and only a folder that nobody holds is removed: by any process, and after any crash.

A hold is a shared lock on the folder itself, which the kernel lets go with the process. Whoever would remove the folder
asks for it alone, without waiting.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
import weakref
from pathlib import Path

GONE = ".gone-"  # prefix of folders being removed; those left by a crash nobody holds


class Hold:
    """Until this object goes, `remove_unused` leaves the folder alone."""

    def __init__(self, folder: Path):
        """Raises FileNotFoundError when the folder is not there, or is removed at this moment."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self._close = weakref.finalize(self, os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # a remover has it for an instant only
        if not _is_at(descriptor, folder):
            self.release()
            raise FileNotFoundError(f"{folder}: removed meanwhile")

    def release(self) -> None:
        self._close()


def remove_unused(folder: Path) -> bool:
    """False, and nothing is done, when somebody holds the folder or it is not there. It disappears at once, whatever
    happens while its files are deleted. Raises OSError where that is forbidden."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(descriptor, folder):
            return False
        gone = folder.with_name(f"{GONE}{uuid.uuid4().hex}")
        os.rename(folder, gone)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    shutil.rmtree(gone)
    return True


def _is_at(descriptor: int, folder: Path) -> bool:
    """Whether what was opened is still what has this name."""
    try:
        now = os.stat(folder)
    except FileNotFoundError:
        return False
    then = os.fstat(descriptor)
    return (then.st_dev, then.st_ino) == (now.st_dev, now.st_ino)
