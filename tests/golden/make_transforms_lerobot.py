"""Run LeRobot's own processor steps over `transform_cases.py`, keep the answers in `transforms/lerobot.npz`."""

from __future__ import annotations

import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.lerobot_types import TransitionKey
from lerobot.policies.common.vla_utils import pad_vector, resize_with_pad_torch
from lerobot.policies.pi0.processor_pi0 import Pi0NewLineProcessor
from lerobot.policies.pi05.processor_pi05 import Pi05PrepareStateTokenizerProcessorStep
from lerobot.processor import NormalizerProcessorStep, TokenizerProcessorStep, UnnormalizerProcessorStep
from lerobot.processor.relative_action_processor import to_absolute_actions, to_relative_actions
from transform_cases import BUDGET, JOINTS, PROMPTS, SIZES, WIDTH, numbers, picture, states
from transformers import AutoTokenizer

HERE = Path(__file__).parent / "transforms"
STATE, TOKENS, MASK = "observation.state", "observation.language.tokens", "observation.language.attention_mask"


def main() -> None:
    tools = {name: version(name) for name in ("lerobot", "transformers", "tokenizers", "torch")}
    kept = {"tools": np.array(json.dumps(tools)), **_images(), **_numbers(), **_prompts()}
    np.savez_compressed(HERE / "lerobot.npz", **kept)


def _images() -> dict[str, np.ndarray]:
    """As its policies do: float, 0 to 1, colours first; kept as the 0 to 255 that would have been."""
    kept = {}
    for (height, width), size in SIZES.items():
        image = torch.from_numpy(picture(height, width)).float()[None] / 255
        fitted = resize_with_pad_torch(image.permute(0, 3, 1, 2), size, size)[0].permute(1, 2, 0)
        kept[f"image_{height}x{width}"] = (fitted * 255).round().to(torch.uint8).numpy()
    return kept


def _numbers() -> dict[str, np.ndarray]:
    given, kept = numbers(), {}
    tensors = {name: torch.from_numpy(np.asarray(given[name], np.float32)) for name in ("state", "actions", "answers")}
    one = {name: given[name].astype(np.float32) for name in ("mean", "std", "q01", "q99")}
    stats = {key: {**one, "min": one["q01"], "max": one["q99"]} for key in (STATE, "action")}
    features = {
        STATE: PolicyFeature(FeatureType.STATE, (JOINTS,)), "action": PolicyFeature(FeatureType.ACTION, (JOINTS,)),
    }  # fmt: skip
    mask = given["mask"].tolist()
    relative = to_relative_actions(tensors["actions"], tensors["state"], mask)
    for kind, mode in (
        ("mean_std", NormalizationMode.MEAN_STD),
        ("quantile", NormalizationMode.QUANTILES),
        ("min_max", NormalizationMode.MIN_MAX),
    ):
        modes = {FeatureType.STATE: mode, FeatureType.ACTION: mode}
        forward = NormalizerProcessorStep(features=features, norm_map=modes, stats=stats)
        backward = UnnormalizerProcessorStep(features=features, norm_map=modes, stats=stats)
        seen = forward({TransitionKey.OBSERVATION: {STATE: tensors["state"]}, TransitionKey.ACTION: relative})
        said = backward({TransitionKey.ACTION: tensors["answers"][..., :JOINTS]})[TransitionKey.ACTION]
        kept[f"{kind}_state"] = pad_vector(seen[TransitionKey.OBSERVATION][STATE], WIDTH).numpy()
        kept[f"{kind}_actions"] = pad_vector(seen[TransitionKey.ACTION], WIDTH).numpy()
        kept[f"{kind}_decoded"] = to_absolute_actions(said, tensors["state"], mask).numpy()
    return kept


def _prompts() -> dict[str, np.ndarray]:
    tokenizer, kept = _tokenizer(), {}
    for name, before in (("pi0", Pi0NewLineProcessor()), ("pi05", Pi05PrepareStateTokenizerProcessorStep())):
        step = TokenizerProcessorStep(tokenizer=tokenizer, max_length=BUDGET[name])
        seen = step(
            before(
                {
                    TransitionKey.OBSERVATION: {STATE: torch.from_numpy(states())},
                    TransitionKey.COMPLEMENTARY_DATA: {"task": list(PROMPTS)},
                }
            )
        )[TransitionKey.OBSERVATION]
        kept[f"{name}_tokens"], kept[f"{name}_mask"] = seen[TOKENS].numpy(), seen[MASK].numpy()
    return kept


def _tokenizer() -> object:
    """Transformers' reading of our small sentencepiece model, as AutoTokenizer reads PaliGemma's."""
    names = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(HERE / "tokenizer.model", folder)
        settings = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "add_eos_token": False, **names}
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(settings))
        (Path(folder) / "config.json").write_text(json.dumps({"model_type": "gemma"}))
        return AutoTokenizer.from_pretrained(folder)


if __name__ == "__main__":
    main()
