"""A store for a server of ONNX Runtime. Beside sealed bundles it keeps exported folders, whole versions that need
neither torch nor onnx; sealed deltas may stand on them, so a robot without torch takes what was learned elsewhere.

root/onnx/<id>/     exported folders
root/versions/<id>/ sealed bundles; one that was not exported is, when it is first served (this needs torch and onnx)
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from hotpolicy.runtime import durable
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.engine.onnx_engine import OnnxEngine
from hotpolicy.runtime.engine.onnx_provider import OnnxOptions
from hotpolicy.runtime.errors import BundleError, UnknownVersion
from hotpolicy.runtime.graphs.exported import Exported, is_exported
from hotpolicy.runtime.graphs.exports import MADE_HERE
from hotpolicy.runtime.policy import Policy
from hotpolicy.runtime.store import Store
from hotpolicy.runtime.versions.chain import check_chain, check_delta
from hotpolicy.runtime.versions.golden import Golden
from hotpolicy.runtime.versions.manifest import FILE_NAME, IDENTIFIER
from hotpolicy.runtime.versions.shelf import ADDING

log = logging.getLogger(__name__)


class OnnxStore(Store):
    """A version is a sealed bundle, or else an exported folder."""

    def __init__(self, root: Path | str, lock_timeout_s: float = 10.0):
        super().__init__(root, lock_timeout_s)
        self._exports = self.root / "onnx"

    def add(self, folder: Path | str) -> str:
        """As a shelf does, and exported folders too. A store keeps one export of a version: of another precision
        than the one that is here, BundleError."""
        if not is_exported(folder):
            return super().add(folder)
        source = Exported.glance(folder)
        final = self._exports / source.bundle.id
        self._exports.mkdir(exist_ok=True)
        with self._locked("add"):
            for left in self._exports.glob(f"{ADDING}*"):
                shutil.rmtree(left)
            if final.is_dir() and self._keeps(final, source):
                (final / MADE_HERE).unlink(missing_ok=True)  # somebody wants it: it is not swept any more
                return source.bundle.id
            fresh = Path(tempfile.mkdtemp(prefix=ADDING, dir=self._exports))
            try:
                for name in ("manifest.json", *source.content["files"]):
                    if not FILE_NAME.fullmatch(name) and name != "manifest.json":
                        raise BundleError(f"{folder}: files: expected plain names, got {name!r}")
                    durable.copy_file(source.folder / name, fresh / name)
                Exported.open(fresh)
                fresh.chmod(0o755)  # mkdtemp made it private
                durable.sync_folder(fresh)
                durable.settle_folder(fresh, final)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)  # gone already after a rename
        return source.bundle.id

    def _keeps(self, final: Path, wanted: Exported) -> bool:
        """Whether the export that is here will do; a damaged one makes room."""
        try:
            here = Exported.open(final)
        except BundleError as error:
            log.warning("replacing a damaged export: %s", error)
            os.rename(final, final.with_name(f"{ADDING}damaged-{final.name}"))
            return False
        mine, other = here.precision, wanted.precision
        if mine != other:
            raise BundleError(
                f"{wanted.folder}: version {wanted.bundle.id} is in {self.root} in {mine}, and this is {other}: "
                "a store keeps one export of a version, use another store"
            )
        return True

    def open(self, version: str) -> Bundle:
        """Of an export, the bundle it was made of; its folder is then the exported one, without the bundle's tensors.
        Raises UnknownVersion, BundleError."""
        version = self.find(version)
        if (self._versions / version).is_dir():
            return super().open(version)
        bundle = Exported.glance(self._exports / version).bundle
        if bundle.id != version:
            raise BundleError(f"{bundle.folder}: expected an export of {version}, it is one of {bundle.id}")
        return bundle

    def chain(self, version: str) -> list[Bundle]:
        """As a shelf does, and an export is whole by itself: the chain begins with the nearest that is needed."""
        chain = [self.open(version)]
        while chain[0].manifest.kind == "delta" and not self._is_export(chain[0]):
            try:
                chain.insert(0, self.open(str(chain[0].manifest.parent)))
            except UnknownVersion as error:
                if not self._exported(chain[0].id):
                    raise UnknownVersion(f"{chain[0].id} changes {chain[0].manifest.parent}: {error}") from error
                chain[0] = Exported.glance(self._exports / chain[0].id).bundle
        if self._is_export(chain[0]):
            _check_on_export(chain)
        else:
            check_chain(chain)
        return chain

    def golden(self, chain: Sequence[Bundle]) -> Golden | None:
        own = [bundle for bundle in chain if not self._is_export(bundle)]
        if (found := Golden.of_chain(own)) is not None or len(own) == len(chain):
            return found
        return Exported.glance(chain[0].folder).golden()

    def _is_export(self, bundle: Bundle) -> bool:
        return bundle.folder.parent == self._exports

    def _exported(self, version: str) -> bool:
        return (self._exports / version).is_dir()

    def _ids(self) -> list[str]:
        return [*super()._ids(), *(id for id in self._export_ids() if not (self._versions / id).is_dir())]

    def _export_ids(self) -> list[str]:
        """Oldest first."""
        if not self._exports.is_dir():
            return []
        found = [entry for entry in os.scandir(self._exports) if IDENTIFIER.fullmatch(entry.name)]
        return [entry.name for entry in sorted(found, key=lambda entry: (entry.stat().st_mtime_ns, entry.name))]

    def _preferences(self) -> Iterator[str]:
        yield from super()._preferences()
        yield from reversed(self._export_ids())


class OnnxLoad:
    """What a Slot needs to load an OnnxStore's versions. Those with the same prefix share its session: a head that was
    tuned elsewhere costs a head's memory."""

    def __init__(self, **options: Any):
        """OnnxOptions by name."""
        self._given, self._options = options, OnnxOptions(**options)
        self._kin: WeakValueDictionary[tuple[str, str], OnnxEngine] = WeakValueDictionary()

    def __call__(self, bundle: Bundle, parent: Policy | None) -> Policy:
        """Raises BundleError."""
        if parent is not None:
            return self._known(parent.derive(bundle))
        if is_exported(bundle.folder):
            exported = Exported.open(bundle.folder)
            kin = self._kin.get((exported.prefix, exported.precision))
            engine = kin.with_head(exported) if kin else OnnxEngine.open(exported, self._options)
            return self._known(Policy(bundle, engine, exported))
        try:
            engine = OnnxEngine.load(bundle, **self._given)
        except ModuleNotFoundError as error:
            raise BundleError(
                f"{bundle.id}: was not exported, and exporting it needs {error.name}, which is not installed: "
                "`hotpolicy export` it where torch is, and add that folder"
            ) from error
        return self._known(Policy(bundle, engine))

    def _known(self, policy: Policy) -> Policy:
        engine = policy.engine
        assert isinstance(engine, OnnxEngine)
        self._kin[(engine.prefix_digest, engine.exported.precision)] = engine
        return policy


def _check_on_export(chain: Sequence[Bundle]) -> None:
    """Deltas on an exported version. Raises BundleError when they do not fit."""
    tensors = Exported.glance(chain[0].folder).tensors
    for before, bundle in pairwise(chain):
        if bundle.manifest.parent != before.id:
            raise BundleError(f"{bundle.id}: expected a delta on {before.id}")
        if bundle.manifest.model != chain[0].manifest.model:
            raise BundleError(f"{bundle.id}: model: a delta keeps its parent's family and config")
        try:
            check_delta(tensors, bundle.manifest.tensors)
        except BundleError as error:
            raise BundleError(f"{bundle.id}: {error}") from error
