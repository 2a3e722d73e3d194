"""The digest of a file, read in blocks, so that a file larger than memory has one too."""

from __future__ import annotations

import hashlib
from pathlib import Path

BLOCK = 1 << 20  # bytes


def file_sha256(path: Path) -> str:
    """Hexadecimal. Raises OSError when the file cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
