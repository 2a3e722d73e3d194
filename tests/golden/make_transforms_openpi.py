"""Run openpi's own transforms and tokenizer over `transform_cases.py`, keep the answers in `transforms/openpi.npz`.

openpi is not installed: its two source folders go on the path, with what these files import beside them (README.md).
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import numpy as np
import openpi.models.tokenizer as tokenizer
import openpi.shared.normalize as normalize
import openpi.transforms as transforms
from openpi_client import image_tools
from transform_cases import BUDGET, PROMPTS, SIZES, WIDTH, numbers, picture, states

HERE = Path(__file__).parent / "transforms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commit", required=True, help="openpi's, for the record")
    commit = parser.parse_args().commit
    tokenizer.download.maybe_download = lambda *_, **__: HERE / "tokenizer.model"  # instead of PaliGemma's
    kept = {"commit": np.array(commit), **_images(), **_numbers(), **_prompts()}
    np.savez_compressed(HERE / "openpi.npz", **kept)


def _images() -> dict[str, np.ndarray]:
    return {f"image_{h}x{w}": image_tools.resize_with_pad(picture(h, w), size, size) for (h, w), size in SIZES.items()}


def _numbers() -> dict[str, np.ndarray]:
    given, kept = numbers(), {}
    both = normalize.NormStats(**{name: given[name] for name in ("mean", "std", "q01", "q99")})
    stats = {"state": both, "actions": both}
    for kind, quantiles in (("mean_std", False), ("quantile", True)):
        into = [
            transforms.DeltaActions(given["mask"]),
            transforms.Normalize(stats, use_quantiles=quantiles),
            transforms.PadStatesAndActions(WIDTH),
        ]
        out = [transforms.Unnormalize(stats, use_quantiles=quantiles), transforms.AbsoluteActions(given["mask"])]
        rows = []
        for state, actions, answers in zip(given["state"], given["actions"], given["answers"], strict=True):
            seen = transforms.compose(into)({"state": state.copy(), "actions": actions.copy()})
            said = transforms.compose(out)({"state": copy.deepcopy(seen["state"]), "actions": answers.copy()})
            rows.append((seen["state"], seen["actions"], said["actions"]))
        for name, values in zip(("state", "actions", "decoded"), zip(*rows, strict=True), strict=True):
            kept[f"{kind}_{name}"] = np.stack(values)
    return kept


def _prompts() -> dict[str, np.ndarray]:
    plain, stateful = (tokenizer.PaligemmaTokenizer(BUDGET[name]) for name in ("pi0", "pi05"))
    pairs = {
        "pi0": [plain.tokenize(prompt) for prompt in PROMPTS],
        "pi05": [stateful.tokenize(prompt, state) for prompt, state in zip(PROMPTS, states(), strict=True)],
    }
    return {
        f"{name}_{part}": np.stack([pair[index] for pair in made])
        for name, made in pairs.items()
        for index, part in enumerate(("tokens", "mask"))
    }


if __name__ == "__main__":
    main()
