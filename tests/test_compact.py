"""What no row of a batch uses is left out before a model sees it, and the answer stays."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from random_policy import TINY, seal_random, transforms_of

from hotpolicy.runtime.engine import Batch
from hotpolicy.runtime.engine.compact import compact
from hotpolicy.runtime.engine.onnx_engine import OnnxEngine
from hotpolicy.runtime.engine.torch_engine import TorchEngine
from hotpolicy.runtime.export import export
from hotpolicy.runtime.graphs.certificate import made_up_batch, rows

FRAMES = made_up_batch(transforms_of(TINY, 3), TINY.vision.image_size, TINY.vocabulary, 4)


def masked(cameras: list[bool], words: list[bool], frames: int = 1) -> Batch:
    batch = rows(FRAMES, slice(frames))
    return dataclasses.replace(
        batch, image_mask=np.tile(cameras, (frames, 1)), token_mask=np.tile(words, (frames, 1)), guidance=None
    )


def test_cameras_and_words_that_some_row_uses_stay() -> None:
    batch = masked([True, False, False], [True, True, False, False, False, False], frames=2)
    batch.image_mask[1] = [False, False, True]
    batch.token_mask[1, 3] = True  # a hole before it
    small = compact(batch)
    np.testing.assert_array_equal(small.images, batch.images[:, [0, 2]])
    np.testing.assert_array_equal(small.image_mask, [[True, False], [False, True]])
    np.testing.assert_array_equal(small.tokens, batch.tokens[:, :4])
    assert small.state is batch.state
    assert compact(batch, 5).tokens.shape == (2, 5)
    assert compact(batch, 64).tokens.shape == (2, 6)  # never longer than it came


def test_guidance_comes_along_and_what_is_whole_is_not_copied() -> None:
    assert compact(FRAMES).guidance is FRAMES.guidance
    whole = masked([True] * 3, [True] * 6)
    assert compact(whole) is whole


def test_the_answer_is_torchs_with_any_cameras_or_none(tmp_path: Path) -> None:
    bundle = seal_random(tmp_path / "bundles", TINY, cameras=3)
    engine, reference = OnnxEngine.open(export([bundle], tmp_path / "out")), TorchEngine.load(bundle)
    for cameras in ([True, False, True], [False, True, False], [False] * 3):
        for used in (1, 4):
            batch = masked(cameras, [place < used for place in range(6)])
            np.testing.assert_allclose(engine.infer(batch), reference.infer(batch), atol=1e-5)
