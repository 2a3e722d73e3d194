"""Guidance in an exported head: what torch computes, with it and without."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from promised import promised
from random_policy import TINY_PI05, TINY_SIGLIP, seal_random, transforms_of

from hotpolicy.runtime.engine import Batch, Guidance
from hotpolicy.runtime.engine.onnx_engine import OnnxEngine
from hotpolicy.runtime.engine.torch_engine import TorchEngine
from hotpolicy.runtime.export import export
from hotpolicy.runtime.graphs.certificate import made_up_batch
from hotpolicy.runtime.graphs.exported import SCHEMA, Exported, to_json
from hotpolicy.runtime.store import Store

# ten steps and a limit that only some of them reach
CONFIGS = {
    name: dataclasses.replace(config, steps=10, horizon=8)
    for name, config in (("pi0", TINY_SIGLIP), ("pi05", TINY_PI05))
}


@dataclasses.dataclass(frozen=True)
class Pair:
    torch: TorchEngine
    onnx: OnnxEngine
    batch: Batch  # four rows, none guided


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    folder, made = tmp_path_factory.mktemp("exports"), {}

    def pair(name: str) -> Pair:
        if name not in made:
            config, bundle = CONFIGS[name], seal_random(folder / "bundles", CONFIGS[name])
            batch = made_up_batch(transforms_of(config, 2), config.vision.image_size, config.vocabulary, 4)
            engine = OnnxEngine.open(export([bundle], folder / name))
            made[name] = Pair(TorchEngine.load(bundle), engine, dataclasses.replace(batch, guidance=None))
        return made[name]

    return pair


@pytest.mark.parametrize("rows", [(), (2,), (0, 1, 2, 3)], ids=["none", "one", "all"])
@pytest.mark.parametrize("limit", [2.5, 10.0, 1e6])
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_torch(pairs: Callable[[str], Pair], name: str, limit: float, rows: tuple[int, ...]) -> None:
    pair = pairs(name)
    batch = promised(pair.batch, rows, limit)
    np.testing.assert_allclose(pair.onnx.infer(batch), pair.torch.infer(batch), atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_unguided_rows_stay_as_they_are(pairs: Callable[[str], Pair], name: str) -> None:
    pair = pairs(name)
    free = pair.onnx.infer(pair.batch)
    np.testing.assert_allclose(free, pair.torch.infer(pair.batch), atol=1e-5)
    none = dataclasses.replace(pair.batch, guidance=Guidance.none(*pair.batch.noise.shape))
    np.testing.assert_array_equal(pair.onnx.infer(none), free)
    guided = pair.onnx.infer(promised(pair.batch, rows=(1,)))
    np.testing.assert_array_equal(guided[[0, 2, 3]], free[[0, 2, 3]])
    assert np.abs(guided[1] - free[1]).max() > 0.1


def test_a_certificate_is_of_guided_frames_too() -> None:
    guidance = made_up_batch(transforms_of(TINY_PI05, 2), 28, 64).guidance
    assert guidance is not None
    assert (guidance.weight.max(1) > 0).tolist() == [False, True] * 3
    assert len(set(guidance.limit[1::2].tolist())) == 3


def test_a_head_that_could_not_be_guided_is_exported_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path / "store")
    bundle = store.open(store.add(seal_random(tmp_path, TINY_SIGLIP).folder))
    folder = OnnxEngine.load(bundle).exported.folder
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["digest"]
    (folder / "manifest.json").write_bytes(to_json({**manifest, "schema": 1}))
    with caplog.at_level(logging.WARNING):
        assert OnnxEngine.load(bundle).exported.content["schema"] == SCHEMA
    assert f"exporting again: {folder}/manifest.json: schema: expected {SCHEMA}, got 1" in caplog.text
    assert Exported.open(folder).content["schema"] == SCHEMA
