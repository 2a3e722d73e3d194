"""The policy versions a robot keeps on disk: sealed bundles, added whole or not at all."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hotpolicy.runtime import durable
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.errors import BundleError, Busy, UnknownVersion
from hotpolicy.runtime.graphs.exported import is_exported
from hotpolicy.runtime.versions.chain import check_chain
from hotpolicy.runtime.versions.golden import Golden
from hotpolicy.runtime.versions.manifest import IDENTIFIER

log = logging.getLogger(__name__)
ADDING = ".add-"  # prefix of folders being copied in; those left by a crash are removed by the next add


class Shelf:
    """`root/versions/<id>/`. Opening creates nothing but the folders. Readers need no lock; writers, in any
    process, take turns."""

    def __init__(self, root: Path | str, lock_timeout_s: float = 10.0):
        self.root = Path(root)
        self._lock_timeout_s = lock_timeout_s
        self._versions = self.root / "versions"
        self._versions.mkdir(parents=True, exist_ok=True)

    def add(self, folder: Path | str) -> str:
        """Copy a sealed bundle in and return its id; one that is here already is left as it is.
        The copy is verified whole before it gets its name. Raises BundleError, Busy, OSError."""
        if is_exported(folder):
            raise BundleError(f"{folder}: an exported policy: ONNX Runtime serves those, and this store is for another")
        source = Bundle.open(folder)
        final = self._versions / source.id
        with self._locked("add"):
            self._sweep()
            if final.is_dir() and self._whole(final):
                return source.id
            names = ("manifest.json", source.manifest.weights, *source.manifest.files)
            durable.require_room(self._versions, sum((source.folder / name).stat().st_size for name in names))
            fresh = Path(tempfile.mkdtemp(prefix=ADDING, dir=self._versions))
            try:
                for name in names:
                    durable.copy_file(source.folder / name, fresh / name)
                Bundle.open(fresh, expect=source.id).verify()
                fresh.chmod(0o755)  # mkdtemp made it private
                durable.sync_folder(fresh)
                durable.settle_folder(fresh, final)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)  # gone already after a rename
        return source.id

    def _whole(self, final: Path) -> bool:
        """Whether a version that is here is undamaged; a damaged one makes room for a good copy."""
        try:
            Bundle.open(final, expect=final.name).verify()
        except BundleError as error:
            log.warning("replacing a damaged version: %s", error)
            os.rename(final, final.with_name(f"{ADDING}damaged-{final.name}"))
            self._sweep()
            return False
        return True

    def find(self, version: str) -> str:
        """The id that `version` is, or is the unique beginning of. Raises UnknownVersion listing what is here."""
        ids = self._ids()
        found = [known for known in ids if version and known.startswith(version)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownVersion(f"version {version!r} is not unique: {_listing(found)}")
        raise UnknownVersion(f"no version {version[:80]!r} in {self.root}; there are: {_listing(ids)}")

    def open(self, version: str) -> Bundle:
        """Raises UnknownVersion, or BundleError when its manifest was altered or a file is gone."""
        version = self.find(version)
        return Bundle.open(self._versions / version, expect=version)

    def chain(self, version: str) -> list[Bundle]:
        """The full bundle and the deltas that make a version, in order of application.
        Raises UnknownVersion when it or a parent is not here, BundleError when they do not fit."""
        chain = [self.open(version)]
        while chain[0].manifest.kind == "delta":
            parent = chain[0].manifest.parent
            try:
                chain.insert(0, self.open(str(parent)))
            except UnknownVersion as error:
                raise UnknownVersion(f"{chain[0].id} changes {parent}, which is not here: {error}") from error
        check_chain(chain)
        return chain

    def golden(self, chain: Sequence[Bundle]) -> Golden | None:
        """What the version at the end of a chain is tried on, if it has brought that."""
        return Golden.of_chain(chain)

    def versions(self) -> list[Bundle]:
        """All versions that open, oldest first. A damaged one is skipped and said so in the log."""
        bundles = []
        for version in self._ids():
            try:
                bundles.append(self.open(version))
            except BundleError as error:
                log.warning("skipped a damaged version: %s", error)
        return bundles

    def _ids(self) -> list[str]:
        """Ids of the version folders, oldest first."""
        found = [entry for entry in os.scandir(self._versions) if IDENTIFIER.fullmatch(entry.name)]
        return [entry.name for entry in sorted(found, key=lambda entry: (entry.stat().st_mtime_ns, entry.name))]

    def _sweep(self) -> None:
        for left in self._versions.glob(f"{ADDING}*"):
            log.warning("removed %s, left by an add that did not finish", left)
            shutil.rmtree(left)

    @contextmanager
    def _locked(self, what: str) -> Iterator[None]:
        """Adding and moving the pointer have a lock each: a rollback never waits for gigabytes to be copied."""
        try:
            with FileLock(self.root / f".{what}.lock", timeout=self._lock_timeout_s):
                yield
        except Timeout as error:
            raise Busy(
                f"{self.root}: another process has held the {what} lock for {self._lock_timeout_s:g} s"
            ) from error


def _listing(ids: list[str]) -> str:
    shown = ", ".join(ids[-8:]) or "none"
    return f"{shown} and {len(ids) - 8} older" if len(ids) > 8 else shown
