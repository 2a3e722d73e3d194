"""A policy version on disk: a folder, immutable once sealed, named by the digest of its content.

Loading is strict: every tensor is accounted for by name, shape, dtype and digest, or it fails naming what is
wrong. Torch-free: engines turn the numpy tensors into their own.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hotpolicy.runtime import durable
from hotpolicy.runtime.digest import file_sha256, tensor_digest
from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.messages import RobotSpec
from hotpolicy.runtime.versions.manifest import FILE_NAME, SCHEMA, Manifest
from hotpolicy.runtime.versions.tensor_file import TensorFile
from hotpolicy.runtime.versions.tensor_writer import DTYPES, write_tensors

HASHING = 2  # threads that verify tensors, one tensor each: hashing holds no lock
SMALL = 16 << 20  # bytes; tensors that have fewer together are verified by the thread that asks


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

    def tensors(self, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """This bundle's own tensors (a delta's: only what changed), or those of `names`, each verified. They lie over
        the mapped file (see TensorFile), and verifying them has touched every page. Raises BundleError naming the
        tensor that is missing, extra, altered, of the wrong shape or dtype, or not finite."""
        file = self.mapped()
        chosen = [name for name in self.manifest.tensors if names is None or name in names]
        self.check(file, chosen)
        return {name: file[name] for name in chosen}

    def mapped(self) -> TensorFile:
        """The same with only names, shapes and dtypes checked, and no page touched. Raises BundleError."""
        path, expected = self.folder / self.manifest.weights, self.manifest.tensors
        file = TensorFile(path)
        for name in sorted(set(file.entries) ^ set(expected)):
            raise BundleError(f"{path}: tensor {name}: {'not in the manifest' if name in file else 'missing'}")
        for name, info in expected.items():
            entry = file.entries[name]
            if (entry.shape, entry.dtype) != (info.shape, info.dtype):
                raise BundleError(
                    f"{path}: tensor {name}: expected {info.dtype} {info.shape}, got {entry.dtype} {entry.shape}"
                )
            if info.dtype not in DTYPES.values():
                raise BundleError(f"{path}: tensor {name}: dtype {info.dtype} is not supported")
        return file

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
        """Check every tensor and side file, in little memory. Raises BundleError naming the first fault."""
        self.check(self.mapped(), list(self.manifest.tensors))
        for name in self.manifest.files:
            self.file(name)

    def check(self, file: TensorFile, names: Collection[str]) -> None:
        def check(name: str) -> None:
            digest = tensor_digest(file[name])
            if digest.hexdigest() != self.manifest.tensors[name].sha256:
                raise BundleError(f"{file.path}: tensor {name}: digest mismatch: the file was altered after sealing")
            if not digest.finite:
                raise BundleError(f"{file.path}: tensor {name}: holds NaN or infinity")

        if sum(file.entries[name].size for name in names) < SMALL:
            for name in names:
                check(name)
            return
        with ThreadPoolExecutor(HASHING, thread_name_prefix="verify") as threads:
            # the largest first, so that the threads end together
            for _ in threads.map(check, sorted(names, key=lambda name: -file.entries[name].size)):
                pass


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
    `tensors` may be lazy: one is held at a time (see `write_tensors`).
    Raises BundleError for content that could not be loaded again: NaN weights, an unknown dtype, not JSON."""
    content = {"kind": kind, "parent": parent, "model": model, "spec": spec.to_dict(), "transforms": transforms,
               "provenance": provenance, "verdict": verdict}  # fmt: skip
    draft = _manifest(**content, tensors={}, files={})  # what is wrong with it is told before gigabytes are written
    with _fresh_folder(Path(parent_folder)) as fresh:
        side = {name: _side_file(fresh, name, data) for name, data in (files or {}).items()}
        infos = write_tensors(fresh / draft.weights, tensors)
        return _settle(fresh, _manifest(**content, tensors=infos, files=side))


def seal_verdict(bundle: Bundle, parent_folder: Path | str, verdict: Mapping[str, Any]) -> Bundle:
    """The same content with another verdict, in `parent_folder/<id>`, without reading a tensor: files are linked, or
    copied where the disk is another. Raises BundleError for a verdict that is not plain JSON."""
    content = bundle.manifest.content()
    del content["schema"], content["tensors"]
    manifest = _manifest(**{**content, "verdict": verdict}, tensors=bundle.manifest.tensors)
    with _fresh_folder(Path(parent_folder)) as fresh:
        for name in (manifest.weights, *manifest.files):
            durable.link_file(bundle.folder / name, fresh / name)
        return _settle(fresh, manifest)


@contextmanager
def _fresh_folder(parent: Path) -> Iterator[Path]:
    """A hidden folder to seal into; gone afterwards, unless it was given its final name."""
    parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".seal-", dir=parent))
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _settle(fresh: Path, manifest: Manifest) -> Bundle:
    """A folder with all files but the manifest -> the sealed bundle beside it."""
    durable.write_file(fresh / "manifest.json", manifest.to_json())
    fresh.chmod(0o755)  # mkdtemp made it private
    durable.sync_folder(fresh)
    final = fresh.parent / manifest.id
    durable.settle_folder(fresh, final)
    return Bundle.open(final, expect=manifest.id)


def _manifest(**content: Any) -> Manifest:
    content["tensors"] = {name: info.to_dict() for name, info in content["tensors"].items()}
    try:  # through JSON, so that what is digested here is what will be read again
        text = json.dumps({"schema": SCHEMA, **content}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BundleError(f"manifest: expected plain JSON values: {error}") from error
    return Manifest.from_dict(json.loads(text))


def _side_file(folder: Path, name: str, data: bytes | Path) -> str:
    if not FILE_NAME.fullmatch(name):
        raise BundleError(f"files: expected plain side file names, got {name!r}")
    if isinstance(data, Path):
        durable.copy_file(data, folder / name)
    else:
        durable.write_file(folder / name, data)
    return file_sha256(folder / name)
