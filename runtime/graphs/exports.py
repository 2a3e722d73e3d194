"""The exports that a store makes by itself, in root/onnx beside its versions: of one that is served by ONNX Runtime and
was not exported yet. What the store made, it also removes; an export that a person added is a version, and stays.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.graphs.exported import Exported
from hotpolicy.runtime.hold import GONE, remove_unused

log = logging.getLogger(__name__)
MADE_HERE = ".made-here"  # an empty file in an export that the store made by itself
LEFTOVERS = (".export-*", f"{GONE}*")  # of a crash, or of a process that is at it right now


@dataclass(frozen=True)
class Exports:
    home: Path  # root/onnx
    versions: Path  # root/versions

    @classmethod
    def beside(cls, bundle: Bundle) -> Exports | None:
        """Of the store that a bundle is in. None: it is in none, or in one that cannot be written to."""
        versions = bundle.folder.parent
        writable = versions.name == "versions" and os.access(versions.parent, os.W_OK)
        return cls(versions.parent / "onnx", versions) if writable else None

    def get(self, bundle: Bundle, make: Callable[[Path], Exported]) -> Exported | None:
        """The export of a bundle, made now if there is none that will do. None: there is one that will not, and
        another process uses it. Raises what `make` raises."""
        found = self._kept_or_made(bundle, make)
        self.sweep()
        return found

    def _kept_or_made(self, bundle: Bundle, make: Callable[[Path], Exported]) -> Exported | None:
        folder = self.home / bundle.id
        if folder.is_dir():
            try:
                exported = Exported.open(folder)
                if exported.bundle.digest == bundle.digest:
                    return exported
                log.warning("%s: is of another version; exporting again", folder)
            except BundleError as error:
                log.warning("exporting again: %s", str(error))  # a record that kept the error would keep the folder
            if not remove_unused(folder) and folder.is_dir():
                return None
        made = make(folder)
        (folder / MADE_HERE).touch()
        return made

    def sweep(self) -> list[str]:
        """Remove what the store made and has no more use for: exports of versions that it no longer has, exports that
        do not open, what a crash left. Never one that a process uses. Returns the names of what went."""
        if not self.home.is_dir():
            return []
        found = [folder for pattern in LEFTOVERS for folder in self.home.glob(pattern)]
        found += [mark.parent for mark in self.home.glob(f"*/{MADE_HERE}") if not self._useful(mark.parent)]
        gone = [folder.name for folder in found if remove_unused(folder)]
        for name in gone:
            log.info("removed %s, an export without further use", self.home / name)
        return gone

    def _useful(self, folder: Path) -> bool:
        if not (self.versions / folder.name).is_dir():
            return False
        try:
            return Exported.glance(folder).bundle.id == folder.name
        except BundleError:
            return False
