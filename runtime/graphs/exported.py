"""A policy version exported to ONNX: a folder that a robot can serve with ONNX Runtime and nothing else.

    manifest.json                     the bundle's own manifest (spec, transforms with tokenizer, provenance), the chain
                                      it ends, where each tensor went and in which form, digests, precision with
                                      what is kept out of it, tools, certificate
    tokenizer.model, golden.npz       where the policy has them: what reads its instructions, and what it is tried on
    prefix.onnx  prefix.onnx.data     images and instruction -> keys and values of every layer, once per frame
    head.onnx    head.onnx.data       those, state and noise -> actions; Euler's steps are a Loop inside

Opening is strict: every file is what the export wrote, or it is refused by name. Needs neither torch nor onnx.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.digest import file_sha256
from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.graphs.quantise import Form
from hotpolicy.runtime.hold import Hold
from hotpolicy.runtime.versions.golden import FILE as GOLDEN
from hotpolicy.runtime.versions.golden import Golden
from hotpolicy.runtime.versions.manifest import Manifest, TensorInfo, canonical

SCHEMA = 3  # 1: a head that could not be guided; 2: fp32 only
KIND = "hotpolicy-onnx"
GraphName = Literal["prefix", "head"]
FIELDS = (
    "kind", "bundle", "chain", "prefix", "tensors", "files", "precision", "keep", "ranges", "inputs", "dims", "opset",
    "tools", "certificate",
)  # fmt: skip


@dataclass(frozen=True)
class Exported:
    folder: Path
    content: Mapping[str, Any]  # of manifest.json, without its digest
    bundle: Bundle  # the version that was exported, for `Policy`; its tensors are in the graphs' data
    held: Hold | None = field(default=None, repr=False, compare=False)  # sessions of deltas read the data again

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every parameter of the version, as its bundle has it; a graph's data may have it in another form."""
        return {
            name: TensorInfo(tuple(t["shape"]), t["dtype"], t["sha256"]) for name, t in self.content["tensors"].items()
        }

    @property
    def places(self) -> dict[str, GraphName | None]:
        """Parameter -> the graph that holds it; None for one that no action depends on."""
        return {name: t["graph"] for name, t in self.content["tensors"].items()}

    @property
    def forms(self) -> dict[str, Form]:
        """Parameter that is in a graph -> how it is kept there."""
        return {name: t["form"] for name, t in self.content["tensors"].items() if t["graph"]}

    @property
    def precision(self) -> str:
        return str(self.content["precision"])

    @property
    def prefix(self) -> str:
        """Digest of all that makes the prefix; a head works with this one only."""
        return str(self.content["prefix"])

    @property
    def certificate(self) -> Mapping[str, Any]:
        """How far ONNX Runtime was from torch: see `certificate.Certificate`."""
        return dict(self.content["certificate"])

    def graph(self, name: GraphName) -> Path:
        return self.folder / f"{name}.onnx"

    def file(self, name: str) -> Path:
        """A side file that came with the export. Raises BundleError when there is none."""
        if name not in self.content["files"]:
            raise BundleError(f"{self.folder}: no file {name!r} was exported")
        return self.folder / name

    def shapes(self, graph: GraphName) -> dict[str, list[list[int]]]:
        """Input -> its smallest, usual and largest shape: what a provider compiles for."""
        dims = {**self.content["dims"]}
        return {
            name: [[dims[size][i] if isinstance(size, str) else size for size in shape] for i in range(3)]
            for name, shape in self.content["inputs"][graph].items()
        }

    def prefix_of(self, tensors: Mapping[str, TensorInfo]) -> str:
        """What `prefix` would be with these parameters, in the same forms."""
        return prefix_digest(self.content, tensors)

    def golden(self) -> Golden | None:
        """The golden observations of the version. Raises BundleError when they are damaged."""
        return Golden.load(self.file(GOLDEN)) if GOLDEN in self.content["files"] else None

    @classmethod
    def open(cls, folder: Path | str) -> Exported:
        """Read and verify all of it; as long as it lives, its folder is held. Raises BundleError naming the file that
        is missing or was altered."""
        exported = cls.glance(folder)
        try:
            held = Hold(exported.folder)
        except OSError as error:
            raise BundleError(f"{exported.folder}: cannot be held: {error}") from error
        try:
            for name, expected in exported.content["files"].items():
                if "/" in name:
                    raise BundleError(
                        f"{exported.folder / name}: digest mismatch: the file was altered after the export"
                    )
                _verify_file(exported.folder / name, expected)
        except BaseException:
            held.release()  # whoever keeps the error would keep it
            raise
        return replace(exported, held=held)

    @classmethod
    def glance(cls, folder: Path | str) -> Exported:
        """Its manifest alone, which has a digest of its own; no other file is looked at. Raises BundleError."""
        folder = Path(folder)
        content = _read_manifest(folder)
        try:
            return cls(folder, content, Bundle(folder, Manifest.from_dict(content["bundle"])))
        except BundleError as error:
            raise BundleError(f"{folder}/manifest.json: bundle: {error}") from error


def is_exported(folder: Path | str) -> bool:
    """Whether it claims to be an exported policy (and not, say, a sealed bundle)."""
    try:
        data = json.loads((Path(folder) / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and data.get("kind") == KIND


def to_json(content: Mapping[str, Any]) -> bytes:
    """The text of manifest.json."""
    return json.dumps({"digest": _digest(content), **content}, indent=1, allow_nan=False).encode()


def prefix_digest(content: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> str:
    """Two versions with the same one have keys and values in common, so one prefix session serves both. `content` is
    the manifest's, of which model, forms and ranges count."""
    mine = [name for name, t in content["tensors"].items() if t["graph"] == "prefix"]
    made_of = {
        "model": content["bundle"]["model"],
        "tensors": {name: tensors[name].sha256 for name in mine},
        "forms": {name: content["tensors"][name]["form"] for name in mine},
        "ranges": {name: most for name, most in content["ranges"].items() if name in mine},
    }
    return hashlib.sha256(canonical(made_of).encode()).hexdigest()


def _verify_file(path: Path, expected: str) -> None:
    try:
        found = file_sha256(path)
    except OSError as error:
        raise BundleError(f"{path}: missing") from error
    if found != expected:
        raise BundleError(f"{path}: digest mismatch: the file was altered after the export")


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder}: not an exported policy: no readable manifest.json") from error
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise BundleError(f"{folder}: not an exported policy: expected a manifest of kind {KIND!r}")
    if data.get("schema") != SCHEMA:
        raise BundleError(f"{path}: schema: expected {SCHEMA}, got {data.get('schema')!r}; export it again")
    claimed = data.pop("digest", None)
    if strange := sorted(set(data) ^ {"schema", *FIELDS}):
        raise BundleError(f"{path}: {strange[0]}: {'unknown field' if strange[0] in data else 'missing'}")
    if claimed != _digest(data):
        raise BundleError(f"{path}: digest mismatch: the manifest was altered after the export")
    return data


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(content).encode()).hexdigest()
