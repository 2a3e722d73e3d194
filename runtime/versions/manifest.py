"""What a policy bundle says about itself: `manifest.json`, parsed strictly, and the digest that names the bundle."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, cast

from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.messages import RobotSpec

SCHEMA = 1
KEPT = 32  # newest texts whose manifests are kept
ID_LENGTH = 16  # hex digits of the digest that name a bundle
FIELDS = ("kind", "parent", "model", "tensors", "spec", "transforms", "provenance", "verdict", "files")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # a plain name: side files never leave the folder
RESERVED = ("manifest.json", "model.safetensors", "delta.safetensors")
IDENTIFIER = re.compile(rf"[0-9a-f]{{{ID_LENGTH}}}")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of the bundle's own safetensors file."""

    shape: tuple[int, ...]
    dtype: str  # safetensors' name, e.g. "F32"
    sha256: str  # of the little-endian, row-major bytes

    def to_dict(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "dtype": self.dtype, "sha256": self.sha256}


@dataclass(frozen=True)
class Manifest:
    """Everything that makes a policy version. Two bundles with the same digest are the same version."""

    kind: Literal["full", "delta"]
    parent: str | None  # id of the bundle a delta changes; for a full bundle, the one it was tuned from, if any
    model: Mapping[str, Any]  # {"family": "pi0" | "echo", "config": {...}}
    tensors: Mapping[str, TensorInfo]
    spec: RobotSpec
    transforms: Mapping[str, Any]  # TransformConfig.to_dict(); opaque here
    provenance: Mapping[str, Any]
    verdict: Mapping[str, Any] | None  # what the gate measured before this bundle was sealed
    files: Mapping[str, str]  # side file name -> sha256

    @property
    def id(self) -> str:
        return self.digest[:ID_LENGTH]

    @cached_property
    def digest(self) -> str:
        """sha256 of the canonical JSON of all fields, hex."""
        return hashlib.sha256(canonical(self.content()).encode()).hexdigest()

    @property
    def weights(self) -> str:
        """Name of the file that holds the tensors."""
        return "model.safetensors" if self.kind == "full" else "delta.safetensors"

    def content(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in FIELDS}
        plain["spec"] = self.spec.to_dict()
        plain["tensors"] = {name: info.to_dict() for name, info in self.tensors.items()}
        return {"schema": SCHEMA, **plain}

    def to_json(self) -> bytes:
        """The text of `manifest.json`: the content and its own digest."""
        return json.dumps({"digest": self.digest, **self.content()}, indent=1, allow_nan=False).encode()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Manifest:
        """Raises BundleError naming the field that is missing, unknown or of the wrong kind."""
        if data.get("schema") != SCHEMA:
            raise BundleError(f"schema: expected {SCHEMA}, got {data.get('schema')!r}")
        strange = sorted(set(data) ^ {"schema", *FIELDS})
        if strange:
            raise BundleError(f"{strange[0]}: {'unknown field' if strange[0] in data else 'missing'}")
        kind = data["kind"]
        _expect(kind in ("full", "delta"), "kind", "full or delta", kind)
        _expect(
            _identifier(data["parent"]) or (data["parent"] is None and kind == "full"), "parent", "a bundle id", data
        )
        for name in ("model", "tensors", "spec", "transforms", "provenance", "files"):
            _expect(isinstance(data[name], dict), name, "a mapping", data[name])
        _expect(data["verdict"] is None or isinstance(data["verdict"], dict), "verdict", "a mapping or null", data)
        model = data["model"]
        _expect(set(model) == {"family", "config"}, "model", "family and config", sorted(model))
        _expect(isinstance(model["family"], str), "model.family", "a name", model["family"])
        _expect(isinstance(model["config"], dict), "model.config", "a mapping", model["config"])
        for name, sha in data["files"].items():
            _expect(bool(FILE_NAME.fullmatch(name)) and name not in RESERVED, "files", "plain side file names", name)
            _expect(_sha256(sha), f"files.{name}", "a sha256", sha)
        return cls(
            kind=kind,
            parent=data["parent"],
            model=model,
            tensors={name: _tensor_info(name, info) for name, info in data["tensors"].items()},
            spec=_spec(data["spec"]),
            transforms=data["transforms"],
            provenance=data["provenance"],
            verdict=data["verdict"],
            files=data["files"],
        )

    @staticmethod
    @lru_cache(maxsize=KEPT)
    def parse(text: bytes) -> Manifest:
        """Read `manifest.json`. Raises BundleError when it is not one, or was altered after sealing. The same text
        gives the same object: one swap opens a version and its parents several times."""
        try:
            data = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"expected JSON ({error})") from error
        if not isinstance(data, dict):
            raise BundleError("expected a JSON mapping")
        claimed = data.pop("digest", None)
        manifest = Manifest.from_dict(data)
        if manifest.digest != claimed:
            raise BundleError(f"digest: content gives {manifest.digest[:ID_LENGTH]}…, the file says {claimed!r}")
        return manifest


def canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _expect(right: bool, name: str, expected: str, got: object) -> None:
    if not right:
        raise BundleError(f"{name}: expected {expected}, got {str(got)[:80]!r}")


def _identifier(value: object) -> bool:
    return isinstance(value, str) and bool(IDENTIFIER.fullmatch(value))


def _sha256(value: object) -> bool:
    return isinstance(value, str) and bool(SHA256.fullmatch(value))


def _tensor_info(name: str, info: object) -> TensorInfo:
    field = f"tensors.{name}"
    if not isinstance(info, dict) or set(info) != {"shape", "dtype", "sha256"}:
        raise BundleError(f"{field}: expected shape, dtype and sha256")
    shape = info["shape"]
    _expect(isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape), field, "a shape", shape)
    _expect(isinstance(info["dtype"], str), field, "a dtype name", info["dtype"])
    _expect(_sha256(info["sha256"]), field, "a sha256", info["sha256"])
    return TensorInfo(tuple(cast("list[int]", shape)), info["dtype"], info["sha256"])


def _spec(data: Mapping[str, Any]) -> RobotSpec:
    try:
        return RobotSpec.from_dict(data)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"spec: {type(error).__name__} {error}") from error
