"""Sealed bundles of pi0 policies with random weights, for whatever does not need one that can do something."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from hotpolicy.runtime.bundle import Bundle, seal
from hotpolicy.runtime.messages import CameraSpec, Joint, RobotSpec
from hotpolicy.runtime.model.pi0 import GemmaConfig, Pi0, Pi0Config, VisionConfig
from hotpolicy.runtime.tokenizer import WordTokenizer
from hotpolicy.runtime.transforms import Normalise, Relative, Transforms
from hotpolicy.runtime.versions.golden import FILE, Golden

TINY = Pi0Config(
    vision=VisionConfig("stem", 32, 32, channels=(8, 8)),
    language=GemmaConfig(width=32, layers=2, mlp=48, heads=4, kv_heads=2, head_dim=8),
    expert=GemmaConfig(width=24, layers=2, mlp=40, heads=4, kv_heads=2, head_dim=8),
    vocabulary=64,
    action_dim=5,
    horizon=4,
    steps=3,
)
TINY_SIGLIP = dataclasses.replace(
    TINY, vision=VisionConfig("siglip", 28, 24, layers=2, heads=2, mlp=32, patch=14), step_embedding=True
)
TINY_PI05 = dataclasses.replace(TINY_SIGLIP, pi05=True)


def weights(config: Pi0Config, seed: int = 0) -> dict[str, np.ndarray]:
    """No parameter is zero: norms and gates that start at zero would hide mistakes."""
    torch.manual_seed(seed)
    with torch.no_grad():
        parameters = Pi0(config).named_parameters()
        return {name: (p + torch.randn_like(p) * 0.05).numpy() for name, p in parameters}


def spec_of(config: Pi0Config, cameras: int) -> RobotSpec:
    size = config.vision.image_size
    return RobotSpec(
        joints=tuple(Joint(f"joint_{i}.pos", "deg", -500.0, 500.0) for i in range(config.action_dim)),
        cameras=tuple(CameraSpec(f"camera_{i}", size, size) for i in range(cameras)),
        rate_hz=10.0,
    )


def transforms_of(config: Pi0Config, cameras: int) -> Transforms:
    rng, joints = np.random.default_rng(5), config.action_dim
    return Transforms(
        cameras=tuple(f"camera_{i}" for i in range(cameras)),
        state=Normalise(np.zeros(joints, np.float32), np.full(joints, 30, np.float32)),
        action=Normalise(
            rng.normal(0, 5, (config.horizon, joints)).astype(np.float32),
            rng.uniform(1, 20, (config.horizon, joints)).astype(np.float32),
        ),
        relative=Relative(np.arange(joints) < joints - 1),
        tokenizer=WordTokenizer(config.vocabulary, max_tokens=6),
    )


def golden_of(config: Pi0Config, cameras: int, n: int = 2) -> Golden:
    rng, size = np.random.default_rng(9), config.vision.image_size
    return Golden(
        images=rng.integers(0, 256, (n, cameras, size, size, 3), np.uint8),
        state=rng.normal(0, 20, (n, config.action_dim)).astype(np.float32),
        tasks=np.array([f"touch the {colour} cube" for colour in ("red", "green", "blue", "grey")[:n]]),
        noise=rng.standard_normal((n, config.horizon, config.action_dim), np.float32),
    )


def seal_random(folder: Path, config: Pi0Config, cameras: int = 2, seed: int = 0, golden: int = 2) -> Bundle:
    return seal(
        folder,
        kind="full",
        parent=None,
        model={"family": "pi0", "config": config.to_dict()},
        tensors=weights(config, seed),
        spec=spec_of(config, cameras),
        transforms=transforms_of(config, cameras).to_dict(),
        provenance={"made_by": "random", "seed": seed},
        files={FILE: golden_of(config, cameras, golden).to_bytes()} if golden else {},
    )


def seal_delta(folder: Path, parent: Bundle, changes: Callable[[str], bool], seed: int = 1) -> Bundle:
    """A delta that moves every parameter whose name `changes`; `parent` may be a delta too."""
    config = Pi0Config.from_dict(parent.manifest.model["config"])
    return seal(
        folder,
        kind="delta",
        parent=parent.id,
        model=parent.manifest.model,
        tensors={name: array for name, array in weights(config, seed).items() if changes(name)},
        spec=parent.manifest.spec,
        transforms=parent.manifest.transforms,
        provenance={"made_by": "random", "seed": seed},
    )


def head_only(name: str) -> bool:
    return name.startswith(("expert", "action_", "state_proj", "time_mlp", "step_embedding"))
