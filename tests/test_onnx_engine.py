"""The ONNX Runtime engine: swaps one session at a time, refuses what does not fit, and needs no torch to serve."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from random_policy import TINY, golden_of, head_only, seal_delta, seal_random, transforms_of

from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.client import ControlClient, PolicyClient
from hotpolicy.runtime.engine import processor
from hotpolicy.runtime.engine.onnx_engine import OnnxEngine
from hotpolicy.runtime.engine.onnx_provider import OnnxOptions
from hotpolicy.runtime.engine.torch_engine import TorchEngine
from hotpolicy.runtime.errors import BundleError, ConfigError, EngineFault
from hotpolicy.runtime.export import export
from hotpolicy.runtime.graphs.certificate import made_up_batch
from hotpolicy.runtime.graphs.exported import Exported, to_json
from hotpolicy.runtime.policy import load_policy
from hotpolicy.runtime.store import Store

ROOT = Path(__file__).parent.parent
BATCH = made_up_batch(transforms_of(TINY, 2), TINY.vision.image_size, TINY.vocabulary, 3)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return seal_random(tmp_path_factory.mktemp("bundles"), TINY)


@pytest.fixture(scope="module")
def exported(base: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export([base], tmp_path_factory.mktemp("exports") / "base")


def backbone(name: str) -> bool:
    return name.startswith("vision")


@pytest.mark.parametrize(
    ("changes", "shares_prefix", "shares_head"),
    [(head_only, True, False), (backbone, False, True), (lambda name: True, False, False)],
    ids=["head", "backbone", "all"],
)
def test_a_delta_builds_only_what_it_changes(base, exported, tmp_path, changes, shares_prefix, shares_head) -> None:
    engine, delta = OnnxEngine.open(exported), seal_delta(tmp_path, base, changes)
    before = engine.infer(BATCH)
    derived = engine.derive(delta)
    assert (derived.prefix is engine.prefix, derived.head is engine.head) == (shares_prefix, shares_head)
    assert (derived.prefix_digest == engine.prefix_digest) == shares_prefix
    np.testing.assert_allclose(derived.infer(BATCH), TorchEngine.load(base).derive(delta).infer(BATCH), atol=1e-5)
    np.testing.assert_array_equal(engine.infer(BATCH), before)
    assert np.abs(derived.infer(BATCH) - before).max() > 1e-2


def test_deltas_on_deltas(base, exported, tmp_path) -> None:
    first = seal_delta(tmp_path, base, head_only, seed=1)
    second = seal_delta(tmp_path, first, lambda name: name.startswith(("embedding", "action_out")), seed=2)
    third = seal_delta(tmp_path, second, head_only, seed=3)
    engine, reference = OnnxEngine.open(exported), TorchEngine.load(base)
    for delta in (first, second, third):
        engine, reference = engine.derive(delta), reference.derive(delta)
        np.testing.assert_allclose(engine.infer(BATCH), reference.infer(BATCH), atol=1e-5)
    assert engine.version == third.id


def test_a_delta_on_another_version_is_refused(base, exported, tmp_path) -> None:
    engine, other = OnnxEngine.open(exported), seal_random(tmp_path, TINY, seed=8)
    first = seal_delta(tmp_path, base, head_only)
    for wrong in (seal_delta(tmp_path, other, head_only), seal_delta(tmp_path, first, head_only, seed=2), other):
        with pytest.raises(BundleError, match=f"^{wrong.id}: expected a delta on {base.id}, got a "):
            engine.derive(wrong)


def test_a_head_moves_between_exports_of_one_prefix_only(base, exported, tmp_path) -> None:
    engine = OnnxEngine.open(exported)
    heads, backbones = seal_delta(tmp_path, base, head_only), seal_delta(tmp_path, base, backbone)
    export([base, heads], tmp_path / "tuned")
    moved = engine.with_head(tmp_path / "tuned")
    assert moved.prefix is engine.prefix
    assert moved.version == heads.id
    np.testing.assert_array_equal(moved.infer(BATCH), OnnxEngine.open(tmp_path / "tuned").infer(BATCH))
    export([base, backbones], tmp_path / "other")
    for refusing in (engine, moved):
        with pytest.raises(BundleError, match=r"its head belongs to prefix [0-9a-f]{16}, this engine holds"):
            refusing.with_head(tmp_path / "other")
    again = moved.derive(seal_delta(tmp_path, heads, head_only, seed=4))
    assert again.prefix is engine.prefix


def test_a_head_put_beside_another_prefix_by_hand_is_refused(base, exported, tmp_path) -> None:
    other = export([base, seal_delta(tmp_path, base, backbone)], tmp_path / "other")
    forged = tmp_path / "forged"
    shutil.copytree(exported.folder, forged)
    content = dict(exported.content, files=dict(exported.content["files"]))
    for name in ("head.onnx", "head.onnx.data"):
        shutil.copy(other.folder / name, forged / name)
        content["files"][name] = other.content["files"][name]
    (forged / "manifest.json").write_bytes(to_json(content))
    with pytest.raises(BundleError, match=r"head\.onnx: made for another prefix than the manifest names"):
        OnnxEngine.open(forged)


@pytest.mark.parametrize("name", ["prefix.onnx", "prefix.onnx.data", "head.onnx", "head.onnx.data", "manifest.json"])
def test_an_altered_or_missing_file_is_named(exported, tmp_path, name) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exported.folder, folder)
    path = folder / name
    data = bytearray(path.read_bytes())
    place = data.index(b'"steps"') + 9 if name == "manifest.json" else len(data) // 2
    data[place] = ord("7") if name == "manifest.json" else data[place] ^ 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=rf"/{name}: digest mismatch: the .* was altered after the export"):
        OnnxEngine.open(folder)
    path.unlink()
    with pytest.raises(BundleError, match=name) as error:
        OnnxEngine.open(folder)
    assert "\n" not in str(error.value)


def test_what_is_not_an_export_says_so(base, tmp_path) -> None:
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "manifest.json").write_text("[]")
    for folder in (tmp_path, tmp_path / "nowhere", base.folder, tmp_path / "list"):
        with pytest.raises(BundleError, match=f"^{folder}: not an exported policy: ") as error:
            OnnxEngine.open(folder)
        assert "\n" not in str(error.value)


def test_a_manifest_of_another_schema_is_refused(exported, tmp_path) -> None:
    path = tmp_path / "manifest.json"
    for content, text in (
        ({**exported.content, "schema": 2}, "schema: expected 3, got 2; export it again"),
        ({**exported.content, "more": 1}, "more: unknown field"),
        ({**exported.content, "bundle": {}}, "bundle: schema"),
    ):
        path.write_bytes(to_json({**content, "files": {}}))
        with pytest.raises(BundleError, match=text):
            Exported.open(tmp_path)


def test_a_store_keeps_the_export_beside_its_versions(base, tmp_path, caplog) -> None:
    store = Store(tmp_path / "store")
    bundle = store.open(store.add(base.folder))
    OnnxEngine.load(bundle)
    (made,) = (tmp_path / "store" / "onnx").iterdir()
    assert made.name == base.id
    written = (made / "manifest.json").stat().st_mtime_ns
    OnnxEngine.load(bundle)
    assert (made / "manifest.json").stat().st_mtime_ns == written
    (made / "head.onnx").write_bytes(b"torn")
    with caplog.at_level(logging.WARNING):
        engine = OnnxEngine.load(bundle)
    assert "exporting again" in caplog.text
    np.testing.assert_allclose(engine.infer(BATCH), TorchEngine.load(base).infer(BATCH), atol=1e-5)


def test_without_a_store_the_export_goes_with_the_engine(base, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    engine = OnnxEngine.load(base)
    derived = engine.derive(seal_delta(tmp_path / "bundles", base, head_only))
    del engine
    gc.collect()
    assert list(tmp_path.glob("hotpolicy-onnx-*"))  # the derived engine may need it for its next delta
    del derived
    gc.collect()
    assert not list(tmp_path.glob("hotpolicy-onnx-*"))


def test_a_policy_does_not_depend_on_its_engine(base, tmp_path) -> None:
    delta, golden = seal_delta(tmp_path, base, head_only), golden_of(TINY, 2)
    observations = golden.observations(base.manifest.spec)
    answers = []
    for engine in ("torch", "onnx"):
        policy = load_policy([base, delta], engine)
        assert policy.version == delta.id
        answers.append(policy.infer(observations, golden.noise))
    np.testing.assert_allclose(*answers, atol=1e-3)  # degrees


def test_unusable_providers_and_inputs_are_named(exported) -> None:
    for provider in ("cuda", "npu"):
        with pytest.raises(ConfigError, match=f"provider: expected one of cpu on this machine, got '{provider}'"):
            OnnxEngine.open(exported, OnnxOptions(provider=provider))
    engine = OnnxEngine.open(exported, OnnxOptions(provider="cpu", threads=2))
    with pytest.raises(EngineFault, match=r"ONNX Runtime: .*images") as error:
        engine.infer(dataclasses.replace(BATCH, images=BATCH.images[:, :, :16]))
    assert "\n" not in str(error.value)


def test_a_large_export_is_computed_by_all_cores(exported, monkeypatch: pytest.MonkeyPatch) -> None:
    def threads(options: OnnxOptions | None = None) -> tuple[int, int]:
        engine = OnnxEngine.open(exported, options)
        return engine.prefix.threads, engine.head.threads

    assert threads() == (1, 1)
    monkeypatch.setattr(processor, "SMALL", 10)
    monkeypatch.setattr(processor, "cores", lambda: 2)
    assert threads() == (2, 2)
    assert threads(OnnxOptions(threads=3)) == (3, 3)


def test_serving_an_export_needs_neither_torch_nor_onnx(exported, base, tmp_path) -> None:
    delta = seal_delta(tmp_path, base, head_only)
    code = f"""
import sys
sys.modules["torch"] = sys.modules["onnx"] = None  # importing them would fail
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.engine import processor
from hotpolicy.runtime.engine.onnx_engine import OnnxEngine
from hotpolicy.runtime.versions.golden import Golden
from hotpolicy.runtime.policy import Policy
engine = OnnxEngine.open({str(exported.folder)!r})
policy = Policy(engine.exported.bundle, engine)
golden = Golden.blank(policy.spec, policy.horizon)
golden.tasks[:] = "x"
for served in (policy, policy.derive(Bundle.open({str(delta.folder)!r}))):
    print(served.version, served.infer(golden.observations(policy.spec), golden.noise).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"{version} (1, 4, 5)" for version in (base.id, delta.id)]


def test_served_by_the_command_and_swapped(base, tmp_path) -> None:
    """`hotpolicy serve --engine onnx`, a robot, and a head swapped under it."""
    store = Store(tmp_path / "store")
    store.add(base.folder)
    delta = seal_delta(tmp_path / "bundles", base, head_only)
    store.add(delta.folder)
    store.promote(base.id, by="test", request_id="first")
    command = [sys.executable, "-m", "hotpolicy.launch.cli", "serve", "--engine", "onnx", "--json",
               "--store", str(store.root), "--endpoint", "tcp://127.0.0.1:0"]  # fmt: skip
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            ready = json.loads(server.stdout.readline())
            golden = golden_of(TINY, 2)
            observation = golden.observations(base.manifest.spec)[0]
            with PolicyClient(ready["endpoint"]) as robot, ControlClient(ready["control"]) as control:
                before = robot.infer(observation, deadline_ms=2000)
                control.swap(delta.id)
                after = robot.infer(observation, deadline_ms=2000)
            assert [chunk.version for chunk in (before, after)] == [base.id, delta.id]
        finally:
            server.terminate()
            server.wait(20)
