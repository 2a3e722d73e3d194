"""A pi0 of random weights as openpi's converter leaves one: bf16, published names, and what comes with it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import sentencepiece
import torch

from hotpolicy.runtime.model.pi0 import Pi0, Pi0Config
from hotpolicy.runtime.model.weights import Depths, parameters
from hotpolicy.runtime.versions.tensor_writer import write_tensors

JOINTS = 6  # of the robot it was "trained" on
SIGN_AND_FRACTION, EXPONENT = np.uint16(0x81FF), np.uint16(0x3C00)  # of bf16: numbers from 2**-7 to 2**-3


class RandomWeights(Mapping[str, np.ndarray]):
    """Published name -> bf16 numbers, made when asked for and always the same."""

    def __init__(self, config: Pi0Config):
        with torch.device("meta"):
            shapes = {name: tuple(p.shape) for name, p in Pi0(config).named_parameters()}
        depths = Depths(config.vision.layers, config.language.layers, config.expert.layers)
        self.shapes = {published: shapes[ours] for published, ours in parameters(config.pi05, depths)}

    def __getitem__(self, name: str) -> np.ndarray:
        shape = self.shapes[name]
        draw = np.random.default_rng(len(name) * 1000 + sum(name.encode()))
        bits = np.frombuffer(draw.bytes(2 * int(np.prod(shape))), np.uint16) & SIGN_AND_FRACTION
        bits |= EXPONENT
        return bits.view(ml_dtypes.bfloat16).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def write_checkpoint(folder: Path, config: Pi0Config) -> int:
    """-> parameters in it."""
    folder.mkdir(parents=True)
    weights = RandomWeights(config)
    write_tensors(folder / "model.safetensors", weights)
    said = {"action_dim": config.action_dim, "action_horizon": config.horizon, "precision": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(said))
    assets = folder / "assets" / "random"
    assets.mkdir(parents=True)
    line = {"mean": [0.0] * JOINTS, "std": [20.0] * JOINTS, "q01": [-40.0] * JOINTS, "q99": [40.0] * JOINTS}
    (assets / "norm_stats.json").write_text(json.dumps({"norm_stats": {"state": line, "actions": line}}))
    (folder / "paligemma_tokenizer.model").write_bytes(_tokenizer())
    return sum(int(np.prod(shape)) for shape in weights.shapes.values())


def _tokenizer() -> bytes:
    """Of a few words: PaliGemma's is not ours to hand on."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["pick up the red cube and put it down"] * 20), model_writer=model, vocab_size=60,
        model_type="bpe", pad_id=0, eos_id=1, bos_id=2, unk_id=3, bos_piece="<bos>", hard_vocab_limit=False,
        add_dummy_prefix=False, remove_extra_whitespaces=False, normalization_rule_name="identity",
        user_defined_symbols=["\n"], minloglevel=2,
    )  # fmt: skip
    return model.getvalue()
