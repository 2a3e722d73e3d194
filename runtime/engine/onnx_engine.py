"""The ONNX Runtime engine: a prefix session and a head session, each swapped alone.

A delta becomes a session by putting its tensors, by name, in the places of the exported ones: no torch, no onnx and
no second export. Torch is needed only to export a full bundle that nobody exported before.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.engine import Batch, Guidance
from hotpolicy.runtime.engine.compact import compact
from hotpolicy.runtime.engine.onnx_provider import OnnxOptions
from hotpolicy.runtime.engine.onnx_session import Session, Value
from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.graphs.exported import Exported
from hotpolicy.runtime.graphs.exports import Exports
from hotpolicy.runtime.versions.chain import check_delta
from hotpolicy.runtime.versions.manifest import TensorInfo


@dataclass(frozen=True)
class OnnxEngine:
    """The Engine contract over an exported folder. Immutable: a swap makes another engine."""

    exported: Exported
    version: str  # id of the bundle whose weights these are
    prefix: Session
    head: Session
    tensors: Mapping[str, TensorInfo]  # every parameter, as it is in this engine
    changed: Mapping[str, np.ndarray]  # those that differ from the exported folder's
    options: OnnxOptions
    guidable: ClassVar[bool] = True

    @classmethod
    def load(cls, bundle: Bundle, **given: Any) -> OnnxEngine:
        """A full bundle, with OnnxOptions by name. It is exported when it was not before (this needs torch and onnx):
        beside the store the bundle is in, or else into a folder that goes when the engine goes. Raises BundleError,
        ConfigError."""
        options, exports = OnnxOptions(**given), Exports.beside(bundle)
        kept = exports.get(bundle, lambda folder: _export(bundle, folder)) if exports else None
        if kept is not None:
            return cls.open(kept, options)
        folder = Path(tempfile.mkdtemp(prefix="hotpolicy-onnx-"))
        try:
            engine = cls.open(_export(bundle, folder / bundle.id), options)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        weakref.finalize(engine.exported, shutil.rmtree, folder, ignore_errors=True)
        return engine

    @classmethod
    def open(cls, folder: Path | str | Exported, options: OnnxOptions | None = None) -> OnnxEngine:
        """An exported folder; needs neither torch nor onnx. Raises BundleError naming the file that is wrong."""
        exported = folder if isinstance(folder, Exported) else Exported.open(folder)
        options = options or OnnxOptions()
        prefix = Session(exported, "prefix", exported.tensors, {}, options)
        head = Session(exported, "head", exported.tensors, {}, options)
        for name, session in (("prefix", prefix), ("head", head)):
            if session.metadata.get("prefix") != exported.prefix:
                raise BundleError(f"{exported.folder}: {name}.onnx: made for another prefix than the manifest names")
        return cls(exported, exported.bundle.id, prefix, head, exported.tensors, {}, options)

    def infer(self, batch: Batch) -> np.ndarray:
        """(batch, horizon, joints) float32, normalised. Raises EngineFault."""
        batch = compact(batch, self.options.chosen().bucket)
        seen = self.prefix.run(
            {
                "images": batch.images,
                "image_mask": batch.image_mask,
                "tokens": batch.tokens,
                "token_mask": batch.token_mask,
            }
        )
        return np.asarray(self.head.run(self.head_inputs(seen, batch), device="cpu")["actions"].numpy())

    def head_inputs(self, seen: Mapping[str, Value], batch: Batch) -> dict[str, np.ndarray | Value]:
        """What the head reads: the prefix's results, and what is the batch's own."""
        steps = np.array(self.exported.bundle.manifest.model["config"]["steps"], np.int64)
        guidance = batch.guidance or Guidance.none(*batch.noise.shape)
        return {**seen, "state": batch.state, "noise": batch.noise, "steps": steps, **guidance.arrays()}

    def derive(self, bundle: Bundle) -> OnnxEngine:
        """A delta on this engine's version: a new session for each graph it changes, this engine's for the other.
        Raises BundleError for a delta on another version, or of tensors that do not fit."""
        manifest = bundle.manifest
        if manifest.kind != "delta" or manifest.parent != self.version:
            raise BundleError(
                f"{bundle.id}: expected a delta on {self.version}, got a {manifest.kind} bundle on {manifest.parent}"
            )
        try:
            check_delta(self.tensors, manifest.tensors)
        except BundleError as error:
            raise BundleError(f"{bundle.id}: {error}") from error
        changed = {**self.changed, **bundle.tensors()}
        tensors = {**self.tensors, **manifest.tensors}
        touched = {self.exported.places[name] for name in manifest.tensors}
        prefix, head = (
            Session(self.exported, graph, tensors, changed, self.options) if graph in touched else mine
            for graph, mine in (("prefix", self.prefix), ("head", self.head))
        )
        return OnnxEngine(self.exported, bundle.id, prefix, head, tensors, changed, self.options)

    def with_head(self, folder: Path | str | Exported) -> OnnxEngine:
        """The head of another exported folder on this engine's prefix session. Raises BundleError when that head
        belongs to another prefix: its keys and values would mean something else."""
        other = folder if isinstance(folder, Exported) else Exported.open(folder)
        mine = self.prefix_digest
        if other.prefix != mine:
            raise BundleError(
                f"{other.folder}: its head belongs to prefix {other.prefix[:16]}, this engine holds {mine[:16]}"
            )
        head = Session(other, "head", other.tensors, {}, self.options)
        if head.metadata.get("prefix") != mine:
            raise BundleError(f"{other.folder}: head.onnx: made for another prefix than the manifest names")
        kept = {name: array for name, array in self.changed.items() if other.places[name] == "prefix"}
        return OnnxEngine(other, other.bundle.id, self.prefix, head, other.tensors, kept, self.options)

    @property
    def prefix_digest(self) -> str:
        return self.exported.prefix_of(self.tensors)


def _export(bundle: Bundle, folder: Path) -> Exported:
    from hotpolicy.runtime.export import export  # late: it needs torch, serving an exported folder does not

    return export([bundle], folder)
