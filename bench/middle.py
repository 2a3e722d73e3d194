"""A pi0 of middle size, about 270 M parameters in pi0's proportions: what the benchmarks that cannot wait for the real
one compute. `seal_middle` makes it a version, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hotpolicy.runtime.model.pi0 import GemmaConfig, Pi0, Pi0Config, VisionConfig

if TYPE_CHECKING:  # LeRobot's environment, where the models are compared, has torch and little else of ours
    from hotpolicy.runtime.bundle import Bundle

SLOTS = ("scene", "wrist", None)  # pi0 has three; no camera is in the last
PROMPT, USED = 48, 20  # words there is room for, and that an instruction has


def middle(pi05: bool = False) -> Pi0Config:
    return Pi0Config(
        VisionConfig("siglip", image_size=224, width=512, layers=12, heads=8, mlp=2048),
        language=GemmaConfig(width=1024, layers=11, mlp=4096, heads=8, kv_heads=1, head_dim=256),
        expert=GemmaConfig(width=384, layers=11, mlp=1024, heads=8, kv_heads=1, head_dim=256),
        vocabulary=8192,
        action_dim=32,
        horizon=50,
        pi05=pi05,
    )


def seal_middle(folder: Path, config: Pi0Config, seed: int = 0, frames: int = 2) -> Bundle:
    """Random weights: what it does means nothing, what it costs does."""
    import numpy as np
    import torch

    from hotpolicy.runtime.bundle import seal
    from hotpolicy.runtime.messages import CameraSpec, Joint, RobotSpec
    from hotpolicy.runtime.tokenizer import WordTokenizer
    from hotpolicy.runtime.transforms import Normalise, Relative, Transforms
    from hotpolicy.runtime.transforms.images import ImageSlots
    from hotpolicy.runtime.versions.golden import FILE, Golden

    torch.manual_seed(seed)
    with torch.no_grad():
        tensors = {
            name: (p.normal_(std=0.02) if "dense" in name else p).numpy()  # pi0.5's norms begin at zero
            for name, p in Pi0(config).named_parameters()
        }
    rng, width, size = np.random.default_rng(9), config.action_dim, config.vision.image_size
    cameras = tuple(slot for slot in SLOTS if slot)
    golden = Golden(
        images=rng.integers(0, 256, (frames, len(cameras), size, size, 3), np.uint8),
        state=rng.normal(0, 20, (frames, width)).astype(np.float32),
        tasks=np.array([" ".join(["cube"] * USED)] * frames),
        noise=rng.standard_normal((frames, config.horizon, width), np.float32),
    )
    transforms = Transforms(
        cameras=cameras,
        state=Normalise(np.zeros(width, np.float32), np.full(width, 30, np.float32)),
        action=Normalise(np.zeros(width, np.float32), np.full(width, 20, np.float32)),
        relative=Relative(np.zeros(width, bool)),
        tokenizer=WordTokenizer(config.vocabulary, max_tokens=PROMPT),
        images=ImageSlots(SLOTS, size),
        horizon=config.horizon,
    )
    spec = RobotSpec(
        joints=tuple(Joint(f"joint_{i}.pos", "deg", -500.0, 500.0) for i in range(width)),
        cameras=tuple(CameraSpec(camera, size, size) for camera in cameras),
        rate_hz=10.0,
    )
    return seal(
        folder, kind="full", parent=None, model={"family": "pi0", "config": config.to_dict()}, tensors=tensors,
        spec=spec, transforms=transforms.to_dict(), provenance={"made_by": "random"},
        files={FILE: golden.to_bytes()},
    )  # fmt: skip
