"""Writing files so that a crash at any moment leaves either the old content or the new, never half of one."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# What a disk that is full, read-only, somebody else's or broken answers: for a person to put right, and no bug.
REFUSALS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
)  # fmt: skip


def refusal(error: OSError, folder: Path | None = None) -> str:
    """One line: which path, what the system said, and how much is free where that is the trouble. `folder` where the
    error names none."""
    path = error.filename2 or error.filename or folder
    return reason(error) if path is None else f"{path}: {reason(error, Path(path))}"


def reason(error: OSError, path: Path | None = None) -> str:
    """What the system said, and how much is free at `path` where that is the trouble."""
    said = error.strerror or str(error)
    if path is None or error.errno != errno.ENOSPC or " free" in said:
        return said
    return f"{said}, {_free(path) / 1e6:.1f} MB are free"


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """The system names the file that does not open, but not the one that takes no more bytes: this does."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def require_room(folder: Path, size: int) -> None:
    """Raises OSError (no space left) when that disk has fewer than `size` bytes free: before the first is written, and
    before the folder is made."""
    free = _free(folder)
    if free < size:
        needed, left = math.ceil(size / 1e5) / 10, math.floor(free / 1e5) / 10  # never the same
        said = f"{os.strerror(errno.ENOSPC)}: {needed:.1f} MB are needed, {left:.1f} MB are free"
        raise OSError(errno.ENOSPC, said, str(folder))


def _free(path: Path) -> int:
    """Bytes on the disk where it is, or will be."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def write_file(path: Path, data: bytes, mode: int | None = None) -> None:
    """Write a new file and wait until the disk has it. The file's name is durable after `sync_folder`.
    With a `mode` it never has another one while there is anything in it."""
    with naming(path), path.open("wb") as file:
        if mode is not None:
            os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def copy_file(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    sync_file(target)


def link_file(source: Path, target: Path) -> None:
    """A second name for a file that nobody will change; a copy where a link cannot reach."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        copy_file(source, target)


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


sync_folder = sync_file  # on Linux a folder is synced through a descriptor too: this makes its names durable


def replace_file(path: Path, data: bytes, mode: int | None = None) -> None:
    """Replace a file's content in one step: readers see the old content or the new."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_file(fresh, data, mode)
        os.replace(fresh, path)
    except OSError:
        with suppress(OSError):  # the first one is told
            fresh.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Append one line and wait until the disk has it. A torn line left by a crash is closed off first."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        data = (("\n" if torn else "") + line + "\n").encode()
        with naming(path):
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, "the disk took only a part of a line")
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if size == 0:
        sync_folder(path.parent)


def settle_folder(fresh: Path, final: Path) -> bool:
    """Rename a finished, synced folder to its final name. False when a folder is there already: the fresh one
    is then removed, because folders named by their content are the same."""
    try:
        os.rename(fresh, final)
    except OSError:
        if not final.is_dir():
            raise
        shutil.rmtree(fresh)
        return False
    sync_folder(final.parent)
    return True
