"""An exported folder served by itself, where neither torch nor onnx can be imported: start, robots, swaps, restarts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calling import call
from random_policy import TINY, golden_of, head_only, seal_delta, seal_random

from hotpolicy.launch.checkup.software import look_at_store
from hotpolicy.launch.serving.options import serve_options
from hotpolicy.launch.serving.server import make_server
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.client import ControlClient, PolicyClient
from hotpolicy.runtime.errors import BundleError, SwapRefused, UnknownVersion
from hotpolicy.runtime.export import export
from hotpolicy.runtime.graphs.exported import Exported, to_json
from hotpolicy.runtime.graphs.exports import MADE_HERE, Exports
from hotpolicy.runtime.graphs.onnx_store import OnnxLoad, OnnxStore
from hotpolicy.runtime.policy import load_policy
from hotpolicy.runtime.slot import Slot
from hotpolicy.runtime.store import Store
from hotpolicy.runtime.versions.chain import resolve
from hotpolicy.runtime.versions.golden import Golden

ROOT = Path(__file__).parent.parent
# Importing one of these fails, as where it is not installed.
MISSING = ("torch", "onnx", "onnxscript", "safetensors")
TORCHLESS = f"import sys; sys.modules.update(dict.fromkeys({MISSING})); from hotpolicy.launch.cli import main; main()"
GOLDEN = golden_of(TINY, 2)


class Made:
    """Three versions, exported each: a base, a head tuned on it, and another robot's."""

    def __init__(self, folder: Path):
        self.base = seal_random(folder / "bundles", TINY)
        self.tuned = seal_delta(folder / "bundles", self.base, head_only)
        self.other = seal_random(folder / "bundles", TINY, cameras=1, seed=3)
        self.later = seal_delta(folder / "bundles", self.tuned, head_only, seed=4)  # never exported
        self.exports = {
            chain[-1].id: export(chain, folder / f"export-{chain[-1].id}").folder
            for chain in ([self.base], [self.base, self.tuned], [self.other])
        }

    def folder(self, bundle: Bundle) -> Path:
        return self.exports[bundle.id]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made"))


@contextmanager
def served(*arguments: object) -> Iterator[dict[str, Any]]:
    """`hotpolicy serve ARGUMENTS` without torch: what its ready line says."""
    command = [sys.executable, "-c", TORCHLESS, "serve", "--json", "--endpoint", "tcp://127.0.0.1:0"]
    with subprocess.Popen([*command, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield json.loads(server.stdout.readline())
        finally:
            server.terminate()
            assert server.wait(20) == 0


def test_served_swapped_and_started_again_without_torch(made: Made, tmp_path: Path) -> None:
    observation = GOLDEN.observations(made.base.manifest.spec)[0]
    store = tmp_path / "store"
    with served(made.folder(made.base), "--store", store) as ready:
        assert (ready["ready"], ready["engine"]) == (made.base.id, "onnx")
        with PolicyClient(ready["endpoint"]) as robot, ControlClient(ready["control"]) as control:
            seen = [robot.infer(observation, deadline_ms=5000)]
            reply = control.swap(str(made.folder(made.tuned)))
            assert (reply["version"], reply["before"]) == (made.tuned.id, made.base.id)
            assert reply["verdict"]["golden"] == 2  # tried on what came along in the folder
            seen.append(robot.infer(observation, deadline_ms=5000))
            control.swap(str(made.later.folder))  # a sealed delta on what was exported: 4 tensors, no torch
            seen.append(robot.infer(observation, deadline_ms=5000))
            assert control.rollback()["version"] == made.tuned.id
            roles = {row["id"]: row["role"] for row in control.versions()["versions"]}
            assert roles == {made.base.id: None, made.tuned.id: "live", made.later.id: "previous"}
        assert [chunk.version for chunk in seen] == [made.base.id, made.tuned.id, made.later.id]
        assert all(np.isfinite(chunk.actions).all() for chunk in seen)
    with served("--store", store) as ready:  # no folder, no engine named: what was live, by what is installed
        assert (ready["ready"], ready["engine"]) == (made.tuned.id, "onnx")


def test_answers_are_those_of_torch(made: Made, tmp_path: Path) -> None:
    slot = Slot(_store(tmp_path, made, made.base), OnnxLoad())
    slot.stage(slot.store.add(made.folder(made.tuned)))
    slot.stage(slot.store.add(made.later.folder))
    observations = GOLDEN.observations(made.base.manifest.spec)
    assert slot.staged is not None
    for policy, chain in ((slot.live, [made.base]), (slot.staged, [made.base, made.tuned, made.later])):
        wanted = load_policy(chain, "torch").infer(observations, GOLDEN.noise)
        np.testing.assert_allclose(policy.infer(observations, GOLDEN.noise), wanted, atol=1e-3)  # degrees


def test_a_head_shares_the_prefix_of_its_base_alone(made: Made, tmp_path: Path) -> None:
    store, load = _store(tmp_path, made, made.base, made.tuned, made.other), OnnxLoad()
    base, tuned, other = (load(store.chain(bundle.id)[0], None) for bundle in (made.base, made.tuned, made.other))
    assert tuned.engine.prefix is base.engine.prefix  # type: ignore[attr-defined]
    assert other.engine.prefix is not base.engine.prefix  # type: ignore[attr-defined]


def test_a_folder_brings_what_it_is_tried_on(made: Made, tmp_path: Path) -> None:
    store = _store(tmp_path, made, made.tuned)
    found = store.golden(store.chain(made.tuned.id))  # of the base, which is not in this store
    assert found is not None
    assert found.same(Golden.load(made.base.file("golden.npz")))
    assert store.live() == made.tuned.id  # an export of a delta is a whole version


def test_what_a_person_added_is_not_swept(made: Made, tmp_path: Path) -> None:
    store = OnnxStore(tmp_path)
    store.add(made.base.folder)
    Slot(store, OnnxLoad())  # exports it by itself
    assert (tmp_path / "onnx" / made.base.id / MADE_HERE).exists()
    store.add(made.folder(made.base))
    shutil.rmtree(tmp_path / "versions" / made.base.id)
    Exports(tmp_path / "onnx", tmp_path / "versions").sweep()
    assert Slot(store, OnnxLoad()).live.version == made.base.id


def test_naming_a_folder_makes_it_live(made: Made, tmp_path: Path) -> None:
    for bundle in (made.base, made.tuned, made.base):
        options = serve_options(None, {"store": tmp_path, "folder": made.folder(bundle)})
        make_server(options)
        make_server(options)
        assert OnnxStore(tmp_path).live() == bundle.id
    assert [change.version for change in OnnxStore(tmp_path).history()] == [made.base.id, made.tuned.id, made.base.id]


def test_a_sealed_bundle_is_served_by_its_folder_too(made: Made, tmp_path: Path) -> None:
    options = serve_options(None, {"store": tmp_path, "folder": made.base.folder})
    assert options.engine == "torch"
    make_server(options)
    assert Store(tmp_path).live() == made.base.id


def test_a_damaged_folder_changes_nothing(made: Made, tmp_path: Path) -> None:
    bad = shutil.copytree(made.folder(made.tuned), tmp_path / "bad")
    data = bytearray((bad / "head.onnx.data").read_bytes())
    data[100] ^= 1
    (bad / "head.onnx.data").write_bytes(data)
    store = _store(tmp_path / "store", made, made.base)
    with pytest.raises(BundleError, match=r"head\.onnx\.data: digest mismatch"):
        store.add(bad)
    assert [bundle.id for bundle in store.versions()] == [made.base.id]
    assert [path.name for path in (store.root / "onnx").iterdir()] == [made.base.id]


def test_damage_in_the_store_is_repaired_by_adding_again(made: Made, tmp_path: Path) -> None:
    store = _store(tmp_path, made, made.base)
    (store.root / "onnx" / made.base.id / "head.onnx").write_bytes(b"torn")
    with pytest.raises(BundleError, match="no version can be served"):
        Slot(store, OnnxLoad())
    store.add(made.folder(made.base))
    assert Slot(store, OnnxLoad()).live.version == made.base.id


def test_the_doctor_looks_at_exports_too(made: Made, tmp_path: Path) -> None:
    store = _store(tmp_path, made, made.tuned)
    assert [finding.text for finding in look_at_store(tmp_path)] == [f"{tmp_path}: serves {made.tuned.id}"]
    (store.root / "onnx" / made.tuned.id / "head.onnx").write_bytes(b"torn")
    assert [finding.level for finding in look_at_store(tmp_path)] == ["bad", "ok"]


def test_what_cannot_be_served_is_said(made: Made, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="an exported policy: ONNX Runtime serves those"):
        Store(tmp_path / "torch").add(made.folder(made.base))
    store = _store(tmp_path / "store", made, made.base)
    with pytest.raises(UnknownVersion, match=f"{made.later.id} changes {made.tuned.id}"):
        store.chain(store.add(made.later.folder))
    stray = shutil.copytree(made.folder(made.tuned), tmp_path / "stray")
    files = {"../../stray": "0" * 64}
    (stray / "manifest.json").write_bytes(to_json({**Exported.open(stray).content, "files": files}))
    with pytest.raises(BundleError, match=r"files: expected plain names, got '\.\./\.\./stray'"):
        store.add(stray)
    half = shutil.copytree(made.folder(made.base), tmp_path / "half")
    content = {**Exported.open(half).content, "precision": "fp16"}
    (half / "manifest.json").write_bytes(to_json(content))
    with pytest.raises(BundleError, match="in fp32, and this is fp16: a store keeps one export of a version"):
        store.add(half)


def test_a_bundle_that_nobody_exported_needs_torch(made: Made, tmp_path: Path) -> None:
    Store(tmp_path).add(made.base.folder)
    command = [sys.executable, "-c", TORCHLESS, "serve", "--store", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert re.search(rf"{made.base.id}: was not exported, and exporting it needs \w+, which is not installed", said)


def test_swapping_a_folder_by_the_command(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"store": tmp_path, "folder": made.folder(made.base), "endpoint": "tcp://127.0.0.1:0"}
    with make_server(serve_options(None, options)) as server:
        server.wait_ready()
        monkeypatch.chdir(made.folder(made.tuned).parent)
        named = made.folder(made.tuned).name  # from where the operator stands
        code, out, _ = call(capsys, monkeypatch, "swap", named, "--control", server.control_endpoint)
        assert (code, out.split(";")[0]) == (0, f"{made.tuned.id} is live (was {made.base.id})")
        code, _, err = call(capsys, monkeypatch, "swap", "/nowhere", "--control", server.control_endpoint)
        assert (code, err) == (2, "hotpolicy: /nowhere: not a policy bundle: no readable manifest.json\n")
        with (
            ControlClient(server.control_endpoint) as control,
            pytest.raises(SwapRefused, match="made for another robot"),
        ):
            control.swap(str(made.folder(made.other)))  # the same checks as for any candidate
        assert server.stats()["versions"]["live"] == made.tuned.id


def test_a_version_is_what_was_sealed(made: Made, tmp_path: Path) -> None:
    """An export says which tensors it holds: those of the chain it was made of."""
    exported = Exported.open(made.folder(made.tuned))
    assert set(exported.tensors) == set(resolve([made.base, made.tuned]))


def _store(root: Path, made: Made, *bundles: Bundle) -> OnnxStore:
    store = OnnxStore(root)
    for bundle in bundles:
        assert store.add(made.folder(bundle)) == bundle.id
    return store
