"""A bundle's tensors lie over its file: lazily sealed, mapped, shared, in their own dtypes, and never written to."""

from __future__ import annotations

import gc
import hashlib
import os
import tracemalloc
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from random_policy import TINY, head_only, seal_delta, seal_random, weights
from safetensors import safe_open
from safetensors.numpy import save_file
from tuning_parts import full_bundle, samples

from hotpolicy.finetune.lessons import Lessons
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.finetune.trainer import Trainer
from hotpolicy.runtime.bundle import Bundle, seal
from hotpolicy.runtime.engine.echo_engine import SPEC
from hotpolicy.runtime.engine.torch_engine import TorchEngine
from hotpolicy.runtime.engine.torch_weights import map_tensors, tensor_to_numpy, tensors_from_numpy
from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.slot import Slot
from hotpolicy.runtime.store import Store
from hotpolicy.runtime.transforms import Transforms
from hotpolicy.runtime.versions.loader import load_with
from hotpolicy.runtime.versions.manifest import Manifest
from hotpolicy.runtime.versions.tensor_file import TensorFile
from hotpolicy.runtime.versions.tensor_writer import ALIGNMENT, DTYPES, write_tensors

BF16 = np.dtype(ml_dtypes.bfloat16)


def sealed(folder: Path, tensors: Mapping[str, np.ndarray]) -> Bundle:
    model = {"family": "echo", "config": {"horizon": 8}}
    return seal(folder, kind="full", parent=None, model=model, tensors=tensors, spec=SPEC, transforms={}, provenance={})


class Lazy(Mapping[str, np.ndarray]):
    """Makes a tensor of 4 MB when it is asked for, and counts how many are alive."""

    def __init__(self, count: int):
        self.count, self.most = count, 0
        self._alive: list[weakref.ref[np.ndarray]] = []

    def __getitem__(self, name: str) -> np.ndarray:
        made = np.full(1 << 20, int(name), np.float32)
        self._alive = [*(ref for ref in self._alive if ref() is not None), weakref.ref(made)]
        self.most = max(self.most, len(self._alive))
        return made

    def __iter__(self) -> Iterator[str]:
        return (str(i) for i in range(self.count))

    def __len__(self) -> int:
        return self.count


# sealing


def test_sealing_and_mapping_hold_one_tensor_at_most(tmp_path: Path) -> None:
    lazy = Lazy(16)  # 64 MB
    tracemalloc.start()
    try:
        bundle = sealed(tmp_path, lazy)
        tensors = map_tensors(bundle)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert lazy.most <= 2  # the next is made before the last is let go
    assert peak < 16e6
    assert all(bool((tensors[name] == int(name)).all()) for name in lazy)


def test_a_tensor_that_changes_between_its_shape_and_its_numbers_is_refused(tmp_path: Path) -> None:
    class Growing(Lazy):
        def __getitem__(self, name: str) -> np.ndarray:
            self.count += 1
            return np.zeros(self.count, np.float32)

        def __iter__(self) -> Iterator[str]:
            return iter(["w"])

    with pytest.raises(BundleError, match=r"tensor w: was F32 \(1,\), now it is F32 \(2,\)"):
        sealed(tmp_path, Growing(0))
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=60, deadline=None)
@given(
    tensors=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
        st.builds(
            lambda dtype, shape: np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape).astype(dtype),
            st.sampled_from([*(np.dtype(name) for name in DTYPES if name != "bfloat16"), BF16]),
            arrays.array_shapes(min_dims=0, min_side=0, max_side=5),
        ),
        max_size=6,
    )
)
def test_the_library_reads_what_is_written(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, np.ndarray]
) -> None:
    path = tmp_path_factory.mktemp("written") / "w.safetensors"
    infos = write_tensors(path, tensors)
    assert list(infos) == list(tensors)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(tensors)
        for name, array in tensors.items():
            read = file.get_tensor(name)
            assert (tuple(read.shape), infos[name].shape) == (array.shape, array.shape)
            assert read.dtype == tensors_from_numpy({name: array})[name].dtype
            np.testing.assert_array_equal(tensor_to_numpy(read), array)
    ours = TensorFile(path)
    assert min((entry.start for entry in ours.entries.values()), default=0) % ALIGNMENT == 0
    assert all(entry.start % ours[name].itemsize == 0 for name, entry in ours.entries.items())


# dtypes


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    values = np.array([[1.0, -2.5], [3.0e38, 1e-40]], BF16)
    bundle = sealed(tmp_path, {"w": values, "b": np.ones(3, np.float32), "scale": np.array(2.0, BF16)})
    assert {name: info.dtype for name, info in bundle.manifest.tensors.items()} == {
        "w": "BF16", "b": "F32", "scale": "BF16"
    }  # fmt: skip
    read = bundle.tensors()
    assert (read["w"].dtype, read["scale"].dtype, read["scale"].shape) == (BF16, BF16, ())
    mapped = map_tensors(bundle)
    assert (mapped["w"].dtype, mapped["b"].dtype) == (torch.bfloat16, torch.float32)
    assert mapped["scale"].shape == ()
    assert tensor_to_numpy(mapped["w"]).tobytes() == values.tobytes()


def test_nan_that_was_sealed_by_another_is_refused(tmp_path: Path) -> None:
    """A manifest that is true to its file, made by hand: only looking at the numbers can tell."""
    bundle = sealed(tmp_path, {"w": np.ones(4, BF16)})
    content = np.array([1, np.nan, 1, 1], BF16).tobytes()
    with (bundle.folder / "model.safetensors").open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(content)
    forged = bundle.manifest.content()
    forged["tensors"]["w"]["sha256"] = hashlib.sha256(content).hexdigest()
    (bundle.folder / "manifest.json").write_bytes(Manifest.from_dict(forged).to_json())
    with pytest.raises(BundleError, match="tensor w: holds NaN or infinity"):
        Bundle.open(bundle.folder).tensors()


# mapping


def test_what_is_written_to_never_reaches_the_file(tmp_path: Path) -> None:
    bundle = sealed(tmp_path, {"w": np.ones(5000, np.float32), "half": np.ones(5000, BF16)})
    path = bundle.folder / "model.safetensors"
    before, other = path.read_bytes(), map_tensors(bundle)
    mine = map_tensors(bundle)
    for tensor in mine.values():
        tensor.mul_(3)
    assert all(bool((tensor == 3).all()) for tensor in mine.values())
    assert all(bool((tensor == 1).all()) for tensor in other.values())
    assert path.read_bytes() == before
    bundle.verify()


@pytest.mark.parametrize("strategy", ["heads", "full"])
def test_tuning_a_mapped_version_leaves_it_as_it_was(tmp_path: Path, strategy: str) -> None:
    bundle = full_bundle(tmp_path)
    path = bundle.folder / "model.safetensors"
    before = path.read_bytes()
    engine = TorchEngine.load(bundle)
    config = TuneConfig(strategy=strategy, steps=3, batch=4, replay=0, rate=0.1, evaluate_every=3)
    transforms = Transforms.from_dict(bundle.manifest.transforms)
    trainer = Trainer(engine.model, transforms, bundle.manifest.spec, Lessons(samples(range(4))), config)
    for _ in trainer.run():
        pass
    tuned = dict(trainer.outcome.model.named_parameters())
    parent = dict(engine.model.named_parameters())
    assert any(not torch.equal(tuned[name], parent[name]) for name in trainer.outcome.learned)
    for name, original in bundle.tensors().items():
        np.testing.assert_array_equal(tensor_to_numpy(parent[name]), original)
        assert (tuned[name].data_ptr() == parent[name].data_ptr()) == (name not in trainer.outcome.learned)
    assert path.read_bytes() == before


def test_a_delta_is_put_on_a_mapped_parent_without_reading_it_again(tmp_path: Path) -> None:
    """The parent's file is another one by then: a swap that touched it would fail or answer differently."""
    base = seal_random(tmp_path / "sealed", TINY)
    delta = seal_delta(tmp_path / "sealed", base, head_only)
    store = Store(tmp_path / "store")
    store.add(base.folder)
    slot = Slot(store, load_with("torch"))
    store.add(delta.folder)
    expected = load_with("torch")(delta, load_with("torch")(base, None))
    file = store.open(base.id).folder / "model.safetensors"
    save_file({"w": np.ones(1, np.float32)}, tmp_path / "junk")
    os.replace(tmp_path / "junk", file)
    slot.stage(delta.id)
    slot.promote(delta.id, "swap", by="test")
    live = dict(slot.live.engine.model.named_parameters())  # type: ignore[attr-defined]
    parent = dict(slot.previous.engine.model.named_parameters())  # type: ignore[attr-defined, union-attr]
    changed = weights(TINY, seed=1)
    for name, tensor in live.items():
        assert (tensor.data_ptr() == parent[name].data_ptr()) == (not head_only(name))
        original = changed[name] if head_only(name) else dict(expected.engine.model.named_parameters())[name]
        np.testing.assert_array_equal(tensor_to_numpy(tensor), np.asarray(original))


def test_the_map_lives_as_long_as_one_tensor_and_no_longer(tmp_path: Path) -> None:
    bundle = sealed(tmp_path, {"w": np.ones(5000, np.float32), "v": np.zeros(5000, np.float32)})
    path = str(bundle.folder / "model.safetensors")

    def maps() -> int:
        return Path("/proc/self/maps").read_text().count(path)

    tensors = map_tensors(bundle)
    del tensors["v"]
    gc.collect()
    assert maps() == 1
    assert bool((tensors["w"] == 1).all())
    tensors.clear()
    gc.collect()
    assert maps() == 0
