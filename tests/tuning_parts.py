"""A tiny robot, a tiny pi0 and episodes made up for the tuning tests: grey level says where to go, the task how far."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from hotpolicy.finetune.episodes import Episode
from hotpolicy.finetune.recorder import Recorder
from hotpolicy.finetune.replay import FILE, rehearsal_bytes
from hotpolicy.finetune.samples import Samples, join, of_episode
from hotpolicy.runtime.bundle import Bundle, seal
from hotpolicy.runtime.engine.torch_weights import build_model, tensors_from_numpy
from hotpolicy.runtime.messages import CameraSpec, Joint, RobotSpec
from hotpolicy.runtime.model.pi0 import GemmaConfig, Pi0, Pi0Config, VisionConfig
from hotpolicy.runtime.tokenizer import WordTokenizer
from hotpolicy.runtime.transforms import Normalise, Relative, Transforms
from hotpolicy.runtime.versions.golden import Golden

SPEC = RobotSpec(
    (Joint("pan.pos", "deg", -90, 90), Joint("elbow.pos", "deg", -90, 90), Joint("gripper.pos", "percent", 0, 100)),
    (CameraSpec("front", 16, 16),),
    rate_hz=10,
)
CONFIG = Pi0Config(
    vision=VisionConfig("stem", image_size=16, width=16, channels=(4, 8)),
    language=GemmaConfig(width=16, layers=3, mlp=16, heads=2, kv_heads=1, head_dim=8),
    expert=GemmaConfig(width=16, layers=3, mlp=16, heads=2, kv_heads=1, head_dim=8),
    vocabulary=64,
    action_dim=3,
    horizon=4,
    steps=4,
    step_embedding=True,
)
TRANSFORMS = Transforms(
    cameras=("front",),
    state=Normalise(np.zeros(3, np.float32), np.full(3, 20, np.float32)),
    action=Normalise(np.zeros((4, 3), np.float32), np.full((4, 3), 10, np.float32)),
    relative=Relative(np.ones(3, bool)),
    tokenizer=WordTokenizer(64, 4),
)
NEW, OLD = "wave once", "stay there"


def episode(seed: int, task: str = NEW, frames: int = 12, success: bool | None = True) -> Episode:
    draw = np.random.default_rng(seed)
    towards = draw.choice([-1.0, 1.0])
    speed = np.array([2.0, -1.0, 1.0]) * (towards if task == NEW else 0.1)
    state = (np.array([0.0, 0.0, 50.0]) + np.arange(frames)[:, None] * speed).astype(np.float32)
    action = state + speed.astype(np.float32)
    grey = np.full((frames, 16, 16, 3), 128 + int(100 * towards), np.uint8)
    return Episode(task, {"front": grey}, state, action, action, np.zeros(frames, bool), (None,) * frames, success)


def samples(seeds: range, task: str = NEW) -> Samples:
    return join([of_episode(episode(seed, task), TRANSFORMS.images, TRANSFORMS.horizon) for seed in seeds])


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Pi0(CONFIG)
    return {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}


def parent_model(seed: int = 0) -> Pi0:
    model = build_model({"family": "pi0", "config": CONFIG.to_dict()}, tensors_from_numpy(weights(seed)))
    assert isinstance(model, Pi0)
    return model


def full_bundle(folder: Path, seed: int = 0, rehearse: bool = True) -> Bundle:
    old = samples(range(100, 104), OLD)
    golden = Golden(
        old.images[:3],
        old.state[:3],
        old.tasks[:3],
        np.random.default_rng(0).standard_normal((3, 4, 3), np.float32),
    )
    files: dict[str, bytes | Path] = {"golden.npz": golden.to_bytes()}
    if rehearse:
        files[FILE] = rehearsal_bytes(old)
    return seal(
        folder,
        kind="full",
        parent=None,
        model={"family": "pi0", "config": CONFIG.to_dict()},
        tensors=weights(seed),
        spec=SPEC,
        transforms=TRANSFORMS.to_dict(),
        provenance={"made": "for a test"},
        files=files,
    )


def record(root: Path, seeds: range, task: str = NEW, success: bool | None = True) -> Path:
    with Recorder.open(root, SPEC) as recorder:
        for seed in seeds:
            recorder.begin(task)
            for step in episode(seed, task, success=success).steps():
                recorder.step(step)
            recorder.save(success=success)
    return root
