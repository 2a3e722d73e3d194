"""What a store exported by itself goes when it has no use for it, and never under a process that uses it."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from random_policy import TINY, head_only, seal_delta, seal_random, transforms_of

from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.engine.onnx_engine import OnnxEngine
from hotpolicy.runtime.export import export
from hotpolicy.runtime.graphs.certificate import made_up_batch
from hotpolicy.runtime.graphs.exported import Exported
from hotpolicy.runtime.graphs.exports import Exports
from hotpolicy.runtime.graphs.onnx_store import OnnxStore
from hotpolicy.runtime.hold import Hold, remove_unused
from hotpolicy.runtime.store import Store

ROOT = Path(__file__).parent.parent
BATCH = made_up_batch(transforms_of(TINY, 2), TINY.vision.image_size, TINY.vocabulary, 2)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return seal_random(tmp_path_factory.mktemp("bundles"), TINY)


def stored(root: Path, *bundles: Bundle) -> tuple[Exports, list[Bundle]]:
    store = Store(root)
    found = [store.open(store.add(bundle.folder)) for bundle in bundles]
    exports = Exports.beside(found[0])
    assert exports is not None
    return exports, found


def names(exports: Exports) -> set[str]:
    return {path.name for path in exports.home.iterdir()}


def test_an_export_goes_with_its_version_and_not_under_an_engine(first: Bundle, tmp_path: Path) -> None:
    exports, (bundle, other) = stored(tmp_path / "store", first, seal_random(tmp_path / "other", TINY, seed=4))
    engine = OnnxEngine.load(bundle)
    assert exports.sweep() == []
    delta = seal_delta(tmp_path / "deltas", bundle, head_only)
    shutil.rmtree(bundle.folder)  # by hand: the store has no command for it
    assert exports.sweep() == []  # the engine's next delta needs it
    derived = engine.derive(delta)
    before = derived.infer(BATCH)
    del engine
    assert exports.sweep() == []
    np.testing.assert_array_equal(derived.infer(BATCH), before)
    del derived
    gc.collect()
    OnnxEngine.load(other)  # sweeps by itself
    assert names(exports) == {other.id}


def test_another_process_keeps_what_it_uses(first: Bundle, tmp_path: Path) -> None:
    exports, (bundle,) = stored(tmp_path / "store", first)
    OnnxEngine.load(bundle)
    gc.collect()
    shutil.rmtree(bundle.folder)
    code = f"""
from hotpolicy.runtime.graphs.exported import Exported
held = Exported.open({str(exports.home / bundle.id)!r})
print("held", flush=True)
input()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert exports.sweep() == []
        other.kill()
    assert exports.sweep() == [bundle.id]
    assert names(exports) == set()


def test_a_broken_export_is_made_again_but_not_under_who_uses_it(first: Bundle, tmp_path: Path) -> None:
    exports, (bundle,) = stored(tmp_path / "store", first)
    folder = OnnxEngine.load(bundle).exported.folder
    user = Exported.open(folder)
    (folder / "head.onnx.data").write_bytes(b"torn")
    elsewhere = OnnxEngine.load(bundle)
    place = elsewhere.exported.folder
    assert place.parent != exports.home
    assert (folder / "head.onnx.data").read_bytes() == b"torn"
    del user
    gc.collect()
    again = OnnxEngine.load(bundle)
    place = again.exported.folder
    del again
    gc.collect()  # sessions refer to themselves
    assert place == folder
    (folder / "manifest.json").write_text("{}")
    assert exports.sweep() == [bundle.id]


def test_an_export_that_a_person_added_is_a_version_and_stays(first: Bundle, tmp_path: Path) -> None:
    exported = export([first], tmp_path / "exported")
    store = OnnxStore(tmp_path / "store")
    version = store.add(exported.folder)
    exports = Exports(store.root / "onnx", store.root / "versions")
    assert exports.sweep() == []
    (exports.home / version / "manifest.json").write_text("{}")  # what cannot be made again is not ours to remove
    assert exports.sweep() == []


def test_what_a_crash_left_goes_and_what_is_being_made_stays(first: Bundle, tmp_path: Path) -> None:
    exports, _ = stored(tmp_path / "store", first)
    assert exports.sweep() == []
    for name in (".export-crashed", ".export-busy", ".gone-half"):
        (exports.home / name).mkdir(parents=True)
        (exports.home / name / "head.onnx.data").touch()
    busy = Hold(exports.home / ".export-busy")
    assert sorted(exports.sweep()) == [".export-crashed", ".gone-half"]
    assert names(exports) == {".export-busy"}
    busy.release()
    assert exports.sweep() == [".export-busy"]


def test_a_hold_and_a_removal_exclude_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    assert not remove_unused(folder)
    with pytest.raises(FileNotFoundError):
        Hold(folder)
    folder.mkdir()
    one, two = Hold(folder), Hold(folder)
    one.release()
    assert not remove_unused(folder)
    del two
    assert remove_unused(folder)
    assert list(tmp_path.iterdir()) == []
