"""A chunk as one call answers as its operations one by one do, for every shape and version, and is written once."""

from __future__ import annotations

import gc
import logging
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from promised import promised
from random_policy import TINY, TINY_PI05, TINY_SIGLIP, seal_delta, seal_random
from test_torch_engine import made_up
from toy_family import Toy, ToyConfig

from hotpolicy.runtime.engine import Batch, torch_traced
from hotpolicy.runtime.engine.torch_engine import TorchEngine
from hotpolicy.runtime.model.pi0 import Pi0Config

CONFIGS = {"stem": TINY, "siglip": TINY_SIGLIP, "pi05": TINY_PI05}


@pytest.fixture(autouse=True)
def nothing_is_written_yet() -> None:
    torch_traced._kept.clear()


def shapes(config: Pi0Config) -> list[Batch]:
    """One row, several, some of them guided, another text, other cameras, and not the same in each row."""
    few = made_up(config, rows=3, words=5, seed=2)
    uneven = np.array([[True, False, False], [True, True, False], [False, False, False]])
    return [
        made_up(config),
        promised(made_up(config, rows=2, seed=1), rows=(0,)),
        replace(few, image_mask=uneven),
        made_up(config, rows=4, words=9, seed=3),
    ]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_one_code_answers_for_every_shape(config: Pi0Config, tmp_path: Path) -> None:
    bundle = seal_random(tmp_path, config)
    one, each = (TorchEngine.load(bundle, traced=traced) for traced in (True, False))
    for batch in shapes(config):
        np.testing.assert_allclose(one.infer(batch), each.infer(batch), atol=2e-5)
    assert (one.place.traced, each.place.traced, len(torch_traced._kept)) == (True, False, 1)


def test_another_version_runs_the_same_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = seal_random(tmp_path, TINY)
    delta = seal_delta(tmp_path, base, lambda name: name.startswith(("action_time_mlp", "expert_norm", "language.0")))
    parent = TorchEngine.load(base)
    before = parent.infer(made_up(TINY))
    monkeypatch.setattr(torch_traced, "_trace", None)  # whoever writes it down anew, fails
    child = parent.derive(delta)
    for batch in shapes(TINY):
        wanted = TorchEngine.load(base, traced=False).derive(delta).infer(batch)
        np.testing.assert_allclose(child.infer(batch), wanted, atol=2e-5)
    np.testing.assert_array_equal(parent.infer(made_up(TINY)), before)
    assert np.abs(child.infer(made_up(TINY)) - before).max() > 1e-3


def test_code_of_one_precision_is_not_that_of_another(tmp_path: Path) -> None:
    bundle, batch = seal_random(tmp_path, TINY), made_up(TINY)
    exact, mixed = (TorchEngine.load(bundle, dtype=dtype).infer(batch) for dtype in ("fp32", "bf16"))
    assert len(torch_traced._kept) == 2
    assert np.abs(mixed - TorchEngine.load(bundle, dtype="bf16", traced=False).infer(batch)).max() < 0.02
    assert 0 < np.abs(exact - mixed).max() < 0.05 * np.abs(exact).max()


def test_a_model_whose_code_would_be_of_one_shape_is_computed_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    """The toy asks how many rows there are: written down, that would be the example's number for ever."""
    engine = TorchEngine(Toy(ToyConfig(width=12, vocabulary=64, action_dim=3, horizon=4)).requires_grad_(False))
    with caplog.at_level(logging.WARNING):
        for rows in (1, 3):
            batch = made_up(TINY, rows)
            batch = replace(batch, state=batch.state[:, :3], noise=batch.noise[:, :4, :3])
            assert engine.infer(batch).shape == (rows, 4, 3)
    assert not engine.place.traced
    assert [record.message.partition(":")[0] for record in caplog.records] == ["toy is computed operation by operation"]


def test_a_version_that_is_gone_leaves_memory(tmp_path: Path) -> None:
    """Its weights are not in the code, which stays."""
    engine = TorchEngine.load(seal_random(tmp_path, TINY))
    engine.infer(made_up(TINY))
    gone = weakref.ref(engine.model.embedding.weight)
    del engine
    gc.collect()
    assert gone() is None
    assert len(torch_traced._kept) == 1
