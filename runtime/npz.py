"""Reading `.npz` files that others may have made: named arrays, no pickles, one line when something is wrong."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hotpolicy.runtime.errors import BundleError


def read_npz(path: Path, names: Sequence[str], what: str) -> dict[str, np.ndarray]:
    """The arrays of `names`, which must be all there are. Raises BundleError when the file is damaged, is not one of
    `what`, or holds other arrays; an array of objects is refused, never unpickled."""
    try:
        # not np.load: it would take a lone array or a pickle too, and leaves open a file that it cannot read
        with path.open("rb") as file, np.lib.npyio.NpzFile(file) as data:
            if sorted(data.files) != sorted(names):
                raise BundleError(f"{path}: expected {', '.join(names)}, got {', '.join(sorted(data.files))}")
            return {name: data[name] for name in names}
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise BundleError(f"{path}: not an npz of {what}: {error}") from error
