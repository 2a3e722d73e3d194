"""Checkpoints in bfloat16, as most are: kept as they are on disk, served in whatever the engine computes with."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from checkpoints import SLOTS, blank, published_tensors, weights, write_openpi, write_settings
from safetensors.numpy import save_file

from hotpolicy.launch.import_settings import Flags, load_settings
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.checkpoint.importer import Extras, import_checkpoint, read_checkpoint
from hotpolicy.runtime.model.weights import TIED_HEAD
from hotpolicy.runtime.policy import load_policy

FLOAT32_IN_LEROBOT = ("vision.", "projector.", "action_", "time_", "state_proj")  # beside all norms


def bring(path: Path, tmp_path: Path) -> Bundle:
    settings = load_settings(None, write_settings(tmp_path / "robot.yaml", SLOTS), Flags())
    return import_checkpoint(read_checkpoint(path), tmp_path / "out", settings, Extras(try_it=True)).bundle


def mixed(family: str) -> dict[str, np.ndarray]:
    """As LeRobot keeps them: everything but the towers' and projections' weights and the norms in bfloat16."""
    return {
        name: array if name.startswith(FLOAT32_IN_LEROBOT) or "norm" in name else array.astype(ml_dtypes.bfloat16)
        for name, array in weights(family).items()
    }


@pytest.mark.parametrize("family", ["pi0", "pi05"])
def test_a_converted_checkpoint_stays_as_it_is_and_acts(family: str, tmp_path: Path) -> None:
    bundle = bring(write_openpi(tmp_path / "checkpoint", family, converted=True), tmp_path)
    expected = weights(family, ml_dtypes.bfloat16)
    for name, array in bundle.tensors().items():
        assert array.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.mark.parametrize("family", ["pi0", "pi05"])
def test_two_dtypes_in_one_file_act_as_one(family: str, tmp_path: Path) -> None:
    """Near the same weights in float32: rounding them moves an action by a little of what it is."""
    found = {}
    for name, ours in (("mixed", mixed(family)), ("whole", weights(family))):
        path = write_openpi(tmp_path / name, family, ours=ours)
        policy = load_policy([bring(path, tmp_path)])
        found[name] = policy.infer([blank(policy.spec)], np.ones((1, policy.horizon, policy.width), np.float32))
    moved = np.abs(found["mixed"] - found["whole"]).max()
    assert 0 < moved < 0.1 * np.abs(found["whole"]).max()


def test_the_embedding_in_bfloat16_under_the_head_s_name(tmp_path: Path) -> None:
    path = write_openpi(tmp_path / "checkpoint", "pi0")
    tensors = published_tensors("pi0", mixed("pi0"))
    save_file(
        {TIED_HEAD: tensors.pop(TIED_HEAD), **{k: v for k, v in tensors.items() if "embed_tokens" not in k}},
        path / "model.safetensors",
    )
    assert bring(path, tmp_path).manifest.tensors["embedding.weight"].dtype == "BF16"
