"""Does a checkpoint that LeRobot saves, imported, give the actions that LeRobot gives?

LeRobot's own PI0Policy and PI05Policy are built small, saved by `save_pretrained` with both of their processor
pipelines, and imported as a user would. Then the same pictures, states, instructions and noise go through LeRobot's
preprocessor, policy and postprocessor, and through our policy. It needs LeRobot's environment and is no part of
`make test`; README.md beside this says how to make one.

    PYTHONPATH=.types:tests:tests/golden /tmp/lerobot/bin/python tests/compat/lerobot_checkpoint_check.py
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

os.environ |= {"HF_HUB_OFFLINE": "1"}

import lerobot
import numpy as np
import torch
from checkpoints import CONFIGS, HORIZON, JOINTS, WIDTH, write_settings, write_tokenizer
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.pi0 import modeling_pi0
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.pi0.processor_pi0 import make_pi0_pre_post_processors
from lerobot.policies.pi05 import modeling_pi05
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from lerobot.policies.pi05.processor_pi05 import make_pi05_pre_post_processors
from lerobot.processor import tokenizer_processor
from lerobot_pi0 import fill, of_size
from transformers import GemmaTokenizer

from hotpolicy.launch.import_settings import Flags, load_settings
from hotpolicy.runtime.checkpoint.importer import Extras, import_checkpoint, read_checkpoint
from hotpolicy.runtime.messages import Observation
from hotpolicy.runtime.policy import load_policy

NAMES = ["pan", "lift", "elbow", "tilt", "roll", "gripper"]
TASKS = ("pick up the red cube", "open the drawer and then move left", "close the box", "put_down the blue cube\n")
SIZE = CONFIGS["pi0"].vision.image_size
FAMILIES = {
    "pi0": (modeling_pi0, "PI0Policy", PI0Config, make_pi0_pre_post_processors),
    "pi05": (modeling_pi05, "PI05Policy", PI05Config, make_pi05_pre_post_processors),
}
TOLERANCE = 1e-4  # of a joint's spread: float32, ten steps, two orders of summation


def save(family: str, folder: Path, relative: bool) -> tuple[Any, Any, Any]:
    """-> policy, preprocessor, postprocessor, as they were when they were saved into the folder."""
    module, policy_class, config_class, make_processors = FAMILIES[family]
    ours = CONFIGS[family].to_dict()
    image = PolicyFeature(FeatureType.VISUAL, (3, SIZE, SIZE))
    config = config_class(
        device="cpu", chunk_size=HORIZON, n_action_steps=HORIZON, max_state_dim=WIDTH, max_action_dim=WIDTH,
        image_resolution=(SIZE, SIZE), empty_cameras=1, use_relative_actions=relative, action_feature_names=NAMES,
        input_features={
            "observation.images.front": image,
            "observation.images.wrist": image,
            "observation.state": PolicyFeature(FeatureType.STATE, (JOINTS,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (JOINTS,))},
    )  # fmt: skip
    with mock.patch.multiple(module, **of_size(module, ours)):
        policy = getattr(module, policy_class)(config)
    fill(policy.model, seed=5)
    write_tokenizer(folder / "tokenizer.model")
    theirs = GemmaTokenizer.from_pretrained(folder, add_bos_token=True)
    with mock.patch.object(tokenizer_processor.AutoTokenizer, "from_pretrained", return_value=theirs):
        pre, post = make_processors(config, statistics())
    for part in (policy, pre, post):
        part.save_pretrained(folder)
    file = folder / "config.json"  # LeRobot knows two sizes, and names them even when it was built smaller
    said = {key: value for key, value in json.loads(file.read_text()).items() if not key.endswith("_variant")}
    file.write_text(json.dumps(said))
    return policy, pre, post


def statistics() -> dict[str, dict[str, torch.Tensor]]:
    rng = np.random.default_rng(1)
    made = {}
    for feature in ("observation.state", "action"):
        mean, std = rng.normal(0, 10, JOINTS), rng.uniform(5, 20, JOINTS)
        made[feature] = {"mean": mean, "std": std, "q01": mean - 2 * std, "q99": mean + 2.5 * std}
    return {key: {name: torch.tensor(v, dtype=torch.float32) for name, v in d.items()} for key, d in made.items()}


def imported(folder: Path, out: Path) -> Any:
    settings = load_settings(None, write_settings(out / "robot.yaml", ""), Flags(cameras=(f"front={SIZE}x{SIZE}",)))
    return load_policy([import_checkpoint(read_checkpoint(folder), out, settings, Extras()).bundle])


def check(family: str, relative: bool) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "pretrained_model"
        folder.mkdir()
        policy, pre, post = save(family, folder, relative)
        ours = imported(folder, Path(scratch))
        worst, moved, spread = 0.0, np.inf, statistics()["action"]["std"].numpy()
        rng = np.random.default_rng(0)
        for task in TASKS:
            images = {name: rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8) for name in ("front", "wrist")}
            state = rng.normal(0, 15, JOINTS).astype(np.float32)
            noise = rng.standard_normal((1, HORIZON, WIDTH)).astype(np.float32)
            batch = {
                f"observation.images.{name}": torch.from_numpy(image).permute(2, 0, 1) / 255
                for name, image in images.items()
            }
            seen = pre({**batch, "observation.state": torch.from_numpy(state), "task": task})
            theirs = post(policy.predict_action_chunk(seen, noise=torch.from_numpy(noise)))
            actions = ours.infer([Observation(images, state, task)], noise)
            worst = max(worst, float(np.abs((actions - theirs.numpy()) / spread).max()))
            other = ours.infer([Observation(images, state, "open the box")], noise)
            moved = min(moved, float(np.abs((actions - other) / spread).max()))
        print(
            f"{family}, relative {relative}: at most {worst:.1e} of a standard deviation over {len(TASKS)} chunks; "
            f"another instruction moves them by {moved:.1e} or more",
            flush=True,
        )
        assert worst < TOLERANCE < moved, (worst, moved)


if __name__ == "__main__":
    print(f"LeRobot {lerobot.__version__}")
    for family in FAMILIES:
        for relative in (False, True):
            check(family, relative)
