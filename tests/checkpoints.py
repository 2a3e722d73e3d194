"""Tiny pi0 and pi0.5 checkpoints with random weights, in the layouts that people have."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import sentencepiece
import torch
from published_keys import published
from safetensors.numpy import save_file

from hotpolicy.runtime.messages import Observation, RobotSpec
from hotpolicy.runtime.model.pi0 import GemmaConfig, Pi0, Pi0Config, VisionConfig
from hotpolicy.runtime.model.weights import EMBEDDING, EXPERT_HEAD, TIED_HEAD, published_to_ours
from hotpolicy.runtime.versions.golden import Golden

JOINTS = 6
WIDTH = 8  # of the model's state and actions
HORIZON = 5
CAMERA = 40  # pixels of the robot's pictures; the model's are 28
PI0 = Pi0Config(
    vision=VisionConfig("siglip", 28, 24, layers=2, heads=2, mlp=32, patch=14),
    language=GemmaConfig(width=32, layers=2, mlp=48, heads=4, kv_heads=2, head_dim=8),
    expert=GemmaConfig(width=24, layers=2, mlp=40, heads=4, kv_heads=2, head_dim=8),
    vocabulary=400,
    action_dim=WIDTH,
    horizon=HORIZON,
)
CONFIGS = {"pi0": PI0, "pi05": dataclasses.replace(PI0, pi05=True)}
SETTINGS = """\
rate_hz: 10
head_dim: 8
vision_heads: 2
joints:
  pan.pos: {unit: deg, low: -180, high: 180}
  lift.pos: {unit: deg, low: -180, high: 180}
  elbow.pos: {unit: deg, low: -180, high: 180}
  tilt.pos: {unit: deg, low: -180, high: 180}
  roll.pos: {unit: deg, low: -180, high: 180}
  gripper.pos: {unit: percent, low: 0, high: 100}
cameras:
  front: {height: 40, width: 40}
  wrist: {height: 28, width: 28}
"""
SLOTS = """\
slots:
  base_0_rgb: front
  left_wrist_0_rgb: wrist
  right_wrist_0_rgb: none
"""

Tensors = dict[str, np.ndarray]


def weights(family: str, dtype: Any = np.float32) -> Tensors:
    """By our parameter names; no norm and no gate is zero. The projections stay float32, as openpi keeps them."""
    torch.manual_seed(3)
    with torch.no_grad():
        named = {name: p + torch.randn_like(p) * 0.05 for name, p in Pi0(CONFIGS[family]).named_parameters()}
    return {name: t.numpy().astype(np.float32 if "_proj." in name[:16] else dtype) for name, t in named.items()}


def published_tensors(family: str, ours: Tensors, prefix: str = "") -> Tensors:
    """All keys of the published layout, both token embeddings and the unused head among them."""
    keys = published(family, layers=PI0.language.layers, vision_layers=PI0.vision.layers)
    plan = published_to_ours(keys)
    tensors = {prefix + key: ours[name] for key, name in plan.names.items()}
    tensors[prefix + TIED_HEAD] = ours["embedding.weight"].copy()
    tensors[prefix + EXPERT_HEAD] = np.zeros((4, 24), np.float32)
    return tensors


@functools.cache
def _tokenizer() -> bytes:
    model = io.BytesIO()
    words = (
        "pick up put down open close the a red green blue cube box drawer and then move left right Task State Action"
    )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([words, *words.split(), "hold still", *map(str, range(256))] * 4),
        model_writer=model,
        vocab_size=120,
        model_type="bpe",
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        bos_piece="<bos>",
        eos_piece="<eos>",
        hard_vocab_limit=False,
        add_dummy_prefix=False,  # this and the next two as in PaliGemma's
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=["\n"],
        minloglevel=2,
    )
    return model.getvalue()


def write_tokenizer(path: Path) -> Path:
    path.write_bytes(_tokenizer())
    return path


def stats(pad_to: int = JOINTS, seed: int = 0) -> dict[str, dict[str, list[float]]]:
    """openpi's norm_stats, with more entries than joints when padded."""
    rng = np.random.default_rng(seed)
    made = {}
    for name in ("state", "actions"):
        mean, std = rng.normal(0, 10, pad_to), rng.uniform(5, 20, pad_to)
        q01, q99 = mean - 2.3 * std, mean + 2.3 * std
        for array in (mean, std, q01, q99):
            array[JOINTS:] = 0  # what padding looks like
        made[name] = {"mean": mean.tolist(), "std": std.tolist(), "q01": q01.tolist(), "q99": q99.tolist()}
    return made


def write_openpi(folder: Path, family: str, *, assets: bool = True, converted: bool = False, **more: Any) -> Path:
    """As openpi's trainer saves (the embedding under the head's name alone), or as its converter does (bf16)."""
    folder.mkdir(parents=True)
    ours = more.pop("ours", None) or weights(family, ml_dtypes.bfloat16 if converted else np.float32)
    tensors = published_tensors(family, ours)
    del tensors[TIED_HEAD if converted else EMBEDDING]
    save_file(tensors, folder / "model.safetensors", metadata={EMBEDDING: TIED_HEAD})
    config = {"action_dim": WIDTH, "action_horizon": HORIZON, "precision": "bfloat16", **more}
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder / "paligemma_tokenizer.model")
    if assets:
        place = folder / "assets" / "someone" / "robot"
        place.mkdir(parents=True)
        (place / "norm_stats.json").write_text(json.dumps({"norm_stats": stats(pad_to=WIDTH)}))
    return folder


def write_lerobot(folder: Path, family: str, **more: Any) -> Path:
    folder.mkdir(parents=True)
    save_file(published_tensors(family, weights(family), "model."), folder / "model.safetensors")
    mode = "QUANTILES" if family == "pi05" else "MEAN_STD"
    modes = {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode}
    image = {"type": "VISUAL", "shape": [3, CAMERA, CAMERA]}
    inputs = {
        "observation.images.front": image,
        "observation.images.wrist": image,
        "observation.images.empty_camera_0": {"type": "VISUAL", "shape": [3, 28, 28]},
        "observation.state": {"type": "STATE", "shape": [JOINTS]},
    }
    outputs = {"action": {"type": "ACTION", "shape": [JOINTS]}}
    config = {
        "type": family,
        "chunk_size": HORIZON,
        "num_inference_steps": 10,
        "max_action_dim": WIDTH,
        "max_state_dim": WIDTH,
        "image_resolution": [28, 28],
        "input_features": inputs,
        "output_features": outputs,
        "normalization_mapping": modes,
        **more,
    }
    (folder / "config.json").write_text(json.dumps(config))
    files = ("policy_preprocessor_step_5_normalizer_processor", "policy_postprocessor_step_0_unnormalizer_processor")
    numbers = {
        f"{feature}.{name}": np.array(values, np.float32)
        for key, feature in (("state", "observation.state"), ("actions", "action"))
        for name, values in stats()[key].items()
    }
    for file in files:
        save_file(numbers, folder / f"{file}.safetensors")
    words = "pi05_prepare_state_tokenizer_processor_step" if family == "pi05" else "pi0_new_line_processor"
    exclude = {
        "enabled": True,
        "exclude_joints": ["gripper"],
        "action_names": ["pan", "lift", "elbow", "tilt", "roll", "gripper"],
    }
    pre: list[dict[str, Any]] = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        {"registry_name": words, "config": {}},
        {"registry_name": "tokenizer_processor", "config": {"max_length": 60, "task_key": "task"}},
        {"registry_name": "relative_actions_processor", "config": exclude},
        {
            "registry_name": "normalizer_processor",
            "config": {"eps": 1e-8, "features": {**inputs, **outputs}, "norm_map": modes},
            "state_file": f"{files[0]}.safetensors",
        },
    ]
    post: list[dict[str, Any]] = [
        {
            "registry_name": "unnormalizer_processor",
            "config": {"eps": 1e-8, "features": outputs, "norm_map": modes},
            "state_file": f"{files[1]}.safetensors",
        },
        {"registry_name": "absolute_actions_processor", "config": {"enabled": True}},
        {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}},
    ]
    for name, steps in (("policy_preprocessor", pre), ("policy_postprocessor", post)):
        (folder / f"{name}.json").write_text(json.dumps({"name": name, "steps": steps}))
    write_tokenizer(folder / "tokenizer.model")
    return folder


def blank(spec: RobotSpec) -> Observation:
    return Golden.blank(spec, HORIZON).observations(spec)[0]


def write_settings(path: Path, more: str = SLOTS) -> Path:
    path.write_text(SETTINGS + more)
    return path
