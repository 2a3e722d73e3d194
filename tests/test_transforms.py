"""Between observations and tensors: what goes in comes out, and what is malformed is named."""

import numpy as np
import pytest

from hotpolicy.runtime.errors import BadRequest, BundleError
from hotpolicy.runtime.messages import Observation
from hotpolicy.runtime.tokenizer import WordTokenizer
from hotpolicy.runtime.transforms import Normalise, Relative, Transforms


def transforms(joints: int = 3, horizon: int = 4) -> Transforms:
    rng = np.random.default_rng(0)
    return Transforms(
        cameras=("front", "wrist"),
        state=Normalise(rng.normal(size=joints).astype(np.float32), rng.uniform(1, 9, joints).astype(np.float32)),
        action=Normalise(
            rng.normal(size=(horizon, joints)).astype(np.float32),
            rng.uniform(1, 9, (horizon, joints)).astype(np.float32),
        ),
        relative=Relative(np.array([True] * (joints - 1) + [False])),
        tokenizer=WordTokenizer(64, 5),
    )


def test_actions_come_back():
    ours = transforms()
    rng = np.random.default_rng(1)
    actions, state = rng.uniform(-90, 90, (7, 4, 3)), rng.uniform(-90, 90, (7, 3)).astype(np.float32)
    np.testing.assert_allclose(ours.decode(ours.encode_actions(actions, state), state), actions, atol=1e-3)


def test_a_still_joint_does_not_explode():
    fitted = Normalise.fit(np.zeros((10, 2), np.float32), floor=np.array([1.7, 11.0]))
    assert fitted.std.tolist() == pytest.approx([1.7, 11.0])


def test_batch_shapes_and_camera_order():
    ours = transforms()
    images = {"wrist": np.full((8, 8, 3), 2, np.uint8), "front": np.full((8, 8, 3), 1, np.uint8)}
    batch = ours.encode([Observation(images, np.zeros(3, np.float32), "touch it")] * 2, np.zeros((2, 4, 3)))
    assert batch.images.shape == (2, 2, 8, 8, 3)
    assert batch.images[0, 0].max() == 1
    assert batch.tokens.shape == (2, 5)
    assert batch.token_mask.sum(1).tolist() == [2, 2]
    assert batch.noise.dtype == np.float32


def test_transforms_survive_json():
    import json

    ours = transforms()
    again = Transforms.from_dict(json.loads(json.dumps(ours.to_dict())))
    assert again.to_dict() == ours.to_dict()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"normalisation": "rank"}, "normalisation"),
        ({"normalisation": "quantile"}, "state: expected q01 and q99"),
        ({"state": {"mean": [0.0], "std": [0.0]}}, "state"),
        ({"action": {"mean": [[0.0]], "std": [[float("nan")]]}}, "action"),
        ({"tokenizer": {"kind": "letters"}}, "tokenizer.kind"),
        ({"tokenizer": {"kind": "sentencepiece"}}, "tokenizer: expected kind, file and max_tokens"),
    ],
)
def test_bad_transforms_are_named(change, named):
    with pytest.raises(BundleError, match=named):
        Transforms.from_dict({**transforms().to_dict(), **change})


def test_missing_field_is_named():
    data = transforms().to_dict()
    del data["relative"]
    with pytest.raises(BundleError, match="relative"):
        Transforms.from_dict(data)


def test_words():
    tokenizer = WordTokenizer(512, 8)
    ids, mask = tokenizer.encode("touch the RED cube")
    assert ids[:4].tolist() == [tokenizer.word(w) for w in ("touch", "the", "red", "cube")]
    assert (ids[4:] == 0).all()
    assert mask.tolist() == [True] * 4 + [False] * 4
    with pytest.raises(BadRequest, match="at least one word"):
        tokenizer.encode("   ")
    with pytest.raises(BadRequest, match="at most 8 words, got 9"):
        tokenizer.encode("a b c d e f g h i")
