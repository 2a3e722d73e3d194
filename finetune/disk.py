"""Writing so that a crash or a power cut leaves the old file or the new one, never a piece."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def put(path: Path, content: bytes) -> None:
    """Write a file so that after a crash or power loss it is the old one or the new one, whole."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(content)
    move(temporary, path)


def move(temporary: Path, path: Path) -> None:
    """Make a finished file durable under its name; both lie on one file system."""
    make_folder(path.parent)
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, each one durable in its parent."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
