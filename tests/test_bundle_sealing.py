"""A sealed bundle loads whole or not at all, and says in one line what is wrong with it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from hotpolicy.runtime.bundle import Bundle, seal, seal_verdict
from hotpolicy.runtime.engine.echo_engine import SPEC
from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.versions.chain import check_chain, check_delta, resolve

WEIGHTS = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scale": np.array(2.0, np.float32),
    "ids": np.arange(4, dtype=np.int64),
    "none": np.zeros((0, 3), np.float16),
}


def sealed(folder: Path, **changes: object) -> Bundle:
    content = {
        "kind": "full",
        "parent": None,
        "model": {"family": "echo", "config": {"horizon": 8, "sizes": (1, 2)}},
        "tensors": WEIGHTS,
        "spec": SPEC,
        "transforms": {"mean": [0.1, 2]},
        "provenance": {"steps": 3},
        "verdict": {"success": 0.95},
        "files": {"notes.txt": b"side file"},
    }
    return seal(folder, **{**content, **changes})  # type: ignore[arg-type]


def delta(folder: Path, parent: Bundle, tensors: dict[str, np.ndarray]) -> Bundle:
    return sealed(folder, kind="delta", parent=parent.id, tensors=tensors, files={})


def edit(bundle: Bundle, change: Callable[[dict], None]) -> None:
    path = bundle.folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def refused(bundle: Bundle) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle.folder, expect=bundle.id).verify()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_what_is_sealed_is_what_is_read(tmp_path: Path) -> None:
    bundle = sealed(tmp_path)
    again = Bundle.open(tmp_path / bundle.id, expect=bundle.id)
    assert again.manifest == bundle.manifest
    assert again.digest.startswith(again.id)
    assert again.manifest.spec == SPEC
    assert again.file("notes.txt").read_bytes() == b"side file"
    read = again.tensors()
    assert set(read) == set(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        np.testing.assert_array_equal(read[name], tensor)
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)


def test_same_content_twice_is_the_same_bundle(tmp_path: Path) -> None:
    assert sealed(tmp_path).folder == sealed(tmp_path).folder
    assert [entry.name for entry in tmp_path.iterdir()] == [sealed(tmp_path).id]


def test_memory_layout_does_not_change_the_digest(tmp_path: Path) -> None:
    turned = {**WEIGHTS, "w": np.asfortranarray(WEIGHTS["w"])}
    other_end = {**WEIGHTS, "w": WEIGHTS["w"].astype(">f4")}
    assert sealed(tmp_path, tensors=turned).id == sealed(tmp_path).id == sealed(tmp_path, tensors=other_end).id


@pytest.mark.parametrize("field", ["provenance", "transforms", "verdict", "tensors", "model"])
def test_any_content_changes_the_id(tmp_path: Path, field: str) -> None:
    other = {"tensors": {"w": np.zeros(1, np.float32)}, "model": {"family": "pi0", "config": {}}}
    assert sealed(tmp_path, **{field: other.get(field, {"other": 1})}).id != sealed(tmp_path).id


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_weights_that_are_not_finite_are_not_sealed(tmp_path: Path, dtype: type, bad: float) -> None:
    largest = np.array([ml_dtypes.finfo(dtype).max, ml_dtypes.finfo(dtype).min], dtype)
    assert sealed(tmp_path / "fine", tensors={"w": largest}).id
    many = np.ones(700_000, dtype)  # more than a block
    many[-1] = bad
    with pytest.raises(BundleError, match="tensor w: holds NaN"):
        sealed(tmp_path / "bad", tensors={"w": many})
    assert list((tmp_path / "bad").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"tensors": {"w": np.array(["a"])}}, "tensor w: dtype"),
        ({"tensors": {"w": np.array([object()])}}, "tensor w: dtype object"),
        ({"tensors": {"w": np.ones(1, ml_dtypes.float8_e5m2)}}, "tensor w: dtype float8"),
        ({"tensors": {"__metadata__": np.ones(1)}}, "tensor __metadata__: this name"),
        ({"provenance": {"loss": float("nan")}}, "plain JSON"),
        ({"provenance": {"loss": np.float32(1)}}, "plain JSON"),
        ({"files": {"../out": b""}}, "plain side file names"),
        ({"files": {"manifest.json": b""}}, "plain side file names"),
        ({"kind": "delta"}, "parent"),
        ({"parent": "not-an-id"}, "parent"),
        ({"model": {"family": "echo"}}, "model"),
    ],
)
def test_what_could_not_be_loaded_is_not_sealed(tmp_path: Path, changes: dict, match: str) -> None:
    with pytest.raises(BundleError, match=match):
        sealed(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


def test_not_a_bundle(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BundleError, match="not a policy bundle"):
            Bundle.open(folder)
    (tmp_path / "manifest.json").write_bytes(b"\x80junk")
    with pytest.raises(BundleError, match="expected JSON"):
        Bundle.open(tmp_path)
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(BundleError, match="expected JSON"):
        Bundle.open(tmp_path)
    (tmp_path / "manifest.json").write_text("[1]")
    with pytest.raises(BundleError, match="mapping"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.update(schema=2), "schema: expected 1, got 2"),
        (lambda m: m.update(extra=1), "extra: unknown field"),
        (lambda m: m.pop("spec"), "spec: missing"),
        (lambda m: m.update(kind="half"), "kind: expected full or delta"),
        (lambda m: m["tensors"]["w"].update(shape=[-1]), "tensors.w: expected a shape"),
        (lambda m: m["tensors"]["w"].pop("sha256"), "tensors.w: expected shape, dtype and sha256"),
        (lambda m: m["spec"].pop("rate_hz"), "spec: KeyError 'rate_hz'"),
        (lambda m: m["files"].update({"/etc/passwd": "0" * 64}), "files: expected plain side file names"),
        (lambda m: m["provenance"].update(steps=4), "digest: content gives"),
        (lambda m: m.update(digest="0" * 64), "digest: content gives"),
        (lambda m: m.pop("digest"), "digest: content gives"),
    ],
)
def test_tampered_manifest(tmp_path: Path, change: Callable[[dict], None], match: str) -> None:
    bundle = sealed(tmp_path)
    edit(bundle, change)
    assert match in refused(bundle)


def test_renamed_folder_is_not_the_version_it_is_called(tmp_path: Path) -> None:
    bundle = sealed(tmp_path)
    with pytest.raises(BundleError, match="expected bundle 0000000000000000, the content is"):
        Bundle.open(bundle.folder, expect="0" * 16)


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({k: v for k, v in WEIGHTS.items() if k != "w"}, "tensor w: missing"),
        ({**WEIGHTS, "more": np.zeros(1)}, "tensor more: not in the manifest"),
        ({**WEIGHTS, "w": WEIGHTS["w"].T.copy()}, "tensor w: expected F32 (2, 3)"),
        ({**WEIGHTS, "w": WEIGHTS["w"].astype(np.float64)}, "tensor w: expected F32 (2, 3)"),
        ({**WEIGHTS, "w": WEIGHTS["w"] + 1}, "tensor w: digest mismatch"),
        ({**WEIGHTS, "w": WEIGHTS["w"] * np.nan}, "tensor w: digest mismatch"),
    ],
)
def test_altered_weights_name_the_tensor(tmp_path: Path, tensors: dict, match: str) -> None:
    bundle = sealed(tmp_path)
    save_file(tensors, bundle.folder / "model.safetensors")
    assert match in refused(bundle)


def test_truncated_weights(tmp_path: Path) -> None:
    bundle = sealed(tmp_path)
    path = bundle.folder / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 4, 8, 40):
        path.write_bytes(whole[:length])
        assert "expected a safetensors file" in refused(bundle)
    for length, name in ((len(whole) - 1, "w"), (len(whole) - 25, "scale"), (len(whole) - 29, "ids")):
        path.write_bytes(whole[:length])
        assert f"truncated in tensor {name}: " in refused(bundle)


@pytest.mark.parametrize(("from_the_end", "name"), [(1, "w"), (25, "scale"), (29, "ids")])
def test_a_flipped_bit_names_the_tensor(tmp_path: Path, from_the_end: int, name: str) -> None:
    bundle = sealed(tmp_path)
    path = bundle.folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-from_the_end] ^= 1
    path.write_bytes(content)
    assert f"tensor {name}: digest mismatch" in refused(bundle)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Each byte of each file is covered: by a tensor's digest, a header check, or the manifest's own digest."""
    bundle = sealed(tmp_path_factory.mktemp("flip"))
    name = data.draw(st.sampled_from(["manifest.json", "model.safetensors", "notes.txt"]))
    path = bundle.folder / name
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        opened = Bundle.open(bundle.folder, expect=bundle.id)
        opened.verify()
    except BundleError:
        return
    read = opened.tensors()  # white space, or the free text of the header: then nothing that counts has changed
    assert opened.manifest == bundle.manifest
    assert all(np.array_equal(read[key], tensor) for key, tensor in WEIGHTS.items())


def test_side_files(tmp_path: Path) -> None:
    bundle = sealed(tmp_path)
    with pytest.raises(BundleError, match=r"no side file 'other'; there are: notes\.txt"):
        bundle.file("other")
    (bundle.folder / "notes.txt").write_bytes(b"altered")
    assert "notes.txt: digest mismatch" in refused(bundle)
    (bundle.folder / "notes.txt").unlink()
    assert "notes.txt: missing" in refused(bundle)


def test_delta_changes_only_what_it_names(tmp_path: Path) -> None:
    base = sealed(tmp_path)
    first = delta(tmp_path, base, {"w": WEIGHTS["w"] * 2})
    second = delta(tmp_path, first, {"scale": np.array(9, np.float32)})
    tensors = resolve([base, first, second])
    np.testing.assert_array_equal(tensors["w"], WEIGHTS["w"] * 2)
    assert tensors["scale"] == 9
    np.testing.assert_array_equal(tensors["ids"], WEIGHTS["ids"])


def test_only_the_tensors_asked_for_are_read(tmp_path: Path) -> None:
    base = sealed(tmp_path)
    first = delta(tmp_path, base, {"w": WEIGHTS["w"] * 2})
    save_file({**WEIGHTS, "w": WEIGHTS["w"] + 1, "ids": WEIGHTS["ids"] + 1}, base.folder / "model.safetensors")
    read = resolve([base, first], ["w", "scale"])
    assert list(read) == ["w", "scale"]
    np.testing.assert_array_equal(read["w"], WEIGHTS["w"] * 2)
    with pytest.raises(BundleError, match="tensor ids: digest mismatch"):
        resolve([base, first])


def test_a_verdict_needs_no_second_copy_of_the_weights(tmp_path: Path) -> None:
    draft = sealed(tmp_path / "drafts", verdict=None)
    final = seal_verdict(draft, tmp_path / "final", {"success": 0.95})
    assert final.manifest == sealed(tmp_path / "other").manifest
    assert final.folder == tmp_path / "final" / final.id
    for name in ("model.safetensors", "notes.txt"):
        assert (final.folder / name).samefile(draft.folder / name)
    shutil.rmtree(draft.folder)
    final.verify()
    with pytest.raises(BundleError, match="plain JSON"):
        seal_verdict(final, tmp_path / "final", {"success": float("nan")})
    assert [entry.name for entry in (tmp_path / "final").iterdir()] == [final.id]


def test_a_verdict_across_disks_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    draft = sealed(tmp_path / "drafts", verdict=None)
    monkeypatch.setattr(os, "link", link)
    final = seal_verdict(draft, tmp_path / "final", {"success": 0.95})
    assert not (final.folder / "model.safetensors").samefile(draft.folder / "model.safetensors")
    final.verify()


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"new": np.zeros(1, np.float32)}, "tensor new: not in the parent"),
        ({"w": np.zeros((3, 2), np.float32)}, r"tensor w: parent has"),
        ({"w": np.zeros((2, 3), np.float64)}, r"tensor w: parent has"),
    ],
)
def test_delta_that_does_not_fit(tmp_path: Path, tensors: dict, match: str) -> None:
    base = sealed(tmp_path)
    with pytest.raises(BundleError, match=match):
        check_delta(base.manifest.tensors, delta(tmp_path, base, tensors).manifest.tensors)
    with pytest.raises(BundleError, match=match):
        resolve([base, delta(tmp_path, base, tensors)])


def test_chain_in_the_wrong_order(tmp_path: Path) -> None:
    base = sealed(tmp_path)
    first = delta(tmp_path, base, {"w": WEIGHTS["w"] * 2})
    second = delta(tmp_path, first, {"w": WEIGHTS["w"] * 3})
    for chain in ([], [first], [base, second], [base, base], [base, second, first]):
        with pytest.raises(BundleError, match="expected"):
            check_chain(chain)
