"""A policy version on disk: a folder, immutable once sealed, named by the digest of its content.

Loading is strict: every tensor is accounted for by name, shape, dtype and digest, or it fails naming what is
wrong. Torch-free: engines turn the numpy tensors into their own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hotpolicy.runtime import durable
from hotpolicy.runtime.digest import file_sha256
from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.manifest import FILE_NAME, SCHEMA, Manifest, TensorInfo
from hotpolicy.runtime.messages import RobotSpec

DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Bundle:
    """A sealed policy version. `open` reads the manifest only; `tensors`, `file` and `verify` check the content."""

    folder: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @classmethod
    def open(cls, folder: Path | str, expect: str | None = None) -> Bundle:
        """Open a bundle's folder; `expect` is the id it must have (a store gives the folder's name).
        Raises BundleError when it is not a bundle, was altered, or lacks a file."""
        folder = Path(folder)
        path = folder / "manifest.json"
        try:
            text = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{folder}: not a policy bundle: no readable manifest.json") from error
        try:
            manifest = Manifest.parse(text)
        except BundleError as error:
            raise BundleError(f"{path}: {error}") from error
        if expect is not None and manifest.id != expect:
            raise BundleError(f"{folder}: expected bundle {expect}, the content is {manifest.id}")
        for name in (manifest.weights, *manifest.files):
            if not (folder / name).is_file():
                raise BundleError(f"{folder}: {name}: missing")
        return cls(folder, manifest)

    def tensors(self) -> dict[str, np.ndarray]:
        """This bundle's own tensors (a delta's: only what changed), each verified. Raises BundleError naming
        the tensor that is missing, extra, altered, of the wrong shape or dtype, or not finite."""
        return dict(self._read())

    def file(self, name: str) -> Path:
        """A side file, its sha256 verified. Raises BundleError when there is no such file or it was altered."""
        if name not in self.manifest.files:
            raise BundleError(
                f"{self.folder}: no side file {name!r}; there are: {', '.join(self.manifest.files) or '-'}"
            )
        path = self.folder / name
        try:
            sha256 = file_sha256(path)
        except OSError as error:
            raise BundleError(f"{path}: missing") from error
        if sha256 != self.manifest.files[name]:
            raise BundleError(f"{path}: digest mismatch: the file was altered after sealing")
        return path

    def verify(self) -> None:
        """Check every tensor and side file, one at a time in memory. Raises BundleError naming the first fault."""
        for _ in self._read():
            pass
        for name in self.manifest.files:
            self.file(name)

    def _read(self) -> Iterator[tuple[str, np.ndarray]]:
        path = self.folder / self.manifest.weights
        expected = self.manifest.tensors
        try:
            with safe_open(path, framework="numpy") as file:
                found = set(file.keys())
                for name in sorted(found ^ set(expected)):
                    raise BundleError(f"{path}: tensor {name}: {'not in the manifest' if name in found else 'missing'}")
                for name, info in expected.items():
                    part = file.get_slice(name)
                    actual = (tuple(part.get_shape()), part.get_dtype())
                    if actual != (info.shape, info.dtype):
                        raise BundleError(f"{path}: tensor {name}: expected {info.dtype} {info.shape}, got {actual}")
                    if info.dtype not in DTYPES.values():
                        raise BundleError(f"{path}: tensor {name}: dtype {info.dtype} is not supported")
                    yield name, _checked(path, name, info, file.get_tensor(name))
        except SafetensorError as error:
            raise BundleError(f"{path}: not a whole safetensors file: {_first_line(error)}") from error
        except OSError as error:
            raise BundleError(f"{path}: cannot be read: {error.strerror or _first_line(error)}") from error


def seal(
    parent_folder: Path | str,
    *,
    kind: Literal["full", "delta"],
    parent: str | None,
    model: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    spec: RobotSpec,
    transforms: Mapping[str, Any],
    provenance: Mapping[str, Any],
    verdict: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes | Path] | None = None,
) -> Bundle:
    """Write a bundle into `parent_folder/<id>` and return it. The same content again gives the same folder.
    Raises BundleError for content that could not be loaded again: NaN weights, an unknown dtype, not JSON."""
    parent_folder = Path(parent_folder)
    parent_folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: _plain(name, tensor) for name, tensor in tensors.items()}
    fresh = Path(tempfile.mkdtemp(prefix=".seal-", dir=parent_folder))
    try:
        side = {name: _side_file(fresh, name, data) for name, data in (files or {}).items()}
        manifest = _manifest(
            kind=kind, parent=parent, model=model, tensors={name: _info(a) for name, a in arrays.items()},
            spec=spec.to_dict(), transforms=transforms, provenance=provenance, verdict=verdict, files=side,
        )  # fmt: skip
        save_file(arrays, fresh / manifest.weights, metadata={"format": "hotpolicy"})
        (fresh / manifest.weights).chmod(0o644)  # safetensors makes it private
        durable.sync_file(fresh / manifest.weights)
        durable.write_file(fresh / "manifest.json", manifest.to_json())
        fresh.chmod(0o755)  # mkdtemp made it private
        durable.sync_folder(fresh)
        durable.settle_folder(fresh, parent_folder / manifest.id)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # gone already after a rename
    return Bundle.open(parent_folder / manifest.id, expect=manifest.id)


def _manifest(**content: Any) -> Manifest:
    content["tensors"] = {name: info.to_dict() for name, info in content["tensors"].items()}
    try:  # through JSON, so that what is digested here is what will be read again
        text = json.dumps({"schema": SCHEMA, **content}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BundleError(f"manifest: expected plain JSON values: {error}") from error
    return Manifest.from_dict(json.loads(text))


def _plain(name: str, tensor: np.ndarray) -> np.ndarray:
    array = np.asarray(tensor, order="C")
    if array.dtype.name not in DTYPES:
        raise BundleError(f"tensor {name}: dtype {array.dtype} is not supported")
    _check_finite("seal", name, array)
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _info(array: np.ndarray) -> TensorInfo:
    return TensorInfo(array.shape, DTYPES[array.dtype.name], _array_sha256(array))


def _checked(path: Path, name: str, info: TensorInfo, array: np.ndarray) -> np.ndarray:
    if _array_sha256(array) != info.sha256:
        raise BundleError(f"{path}: tensor {name}: digest mismatch: the file was altered after sealing")
    _check_finite(str(path), name, array)
    return array


def _check_finite(where: str, name: str, array: np.ndarray) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BundleError(f"{where}: tensor {name}: holds NaN or infinity")


def _array_sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.asarray(array, order="C").reshape(-1).view(np.uint8).data).hexdigest()


def _side_file(folder: Path, name: str, data: bytes | Path) -> str:
    if not FILE_NAME.fullmatch(name):
        raise BundleError(f"files: expected plain side file names, got {name!r}")
    if isinstance(data, Path):
        durable.copy_file(data, folder / name)
    else:
        durable.write_file(folder / name, data)
    return file_sha256(folder / name)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
