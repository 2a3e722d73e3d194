"""Run LeRobot's pi0 and pi0.5 at small sizes and keep what they compute: the answers our model must give.

    HF_HUB_OFFLINE=1 python tests/golden/make_pi0.py        (in LeRobot's environment: see README.md)

One file per family and size, pi0/FAMILY_SIZE.npz. A file holds the configuration, the seed of the weights (made by
pi0_weights.py, so not stored), the inputs, and from LeRobot in fp32: K and V of every layer at the tokens that exist,
one denoise step, the whole sample, the embedding of time in each of the sample's steps, and the training loss; and its
bf16 sample, whose distance from fp32 is the floor below which no bf16 result can be told from another.
"""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lerobot_pi0
import numpy as np
import torch
from pi0_weights import spread
from torch import Tensor

FOLDER = Path(__file__).parent / "pi0"
LIBRARIES = ("lerobot", "transformers", "torch", "numpy")
THREADS = 1


@dataclass(frozen=True)
class Case:
    config: dict[str, Any]  # as Pi0Config.to_dict() gives it
    seed: int
    image_mask: list[list[bool]]  # (batch, cameras)
    words: tuple[int, ...]  # used of `tokens`, per row
    tokens: int  # width of the padded prompt


def case(name: str, pi05: bool) -> Case:
    seed = 2 * list(SIZES).index(name) + pi05
    gemma = {"layers": 2, "heads": 8, "kv_heads": 1, "head_dim": 16}
    siglip = {"kind": "siglip", "patch": 14, "channels": (32, 64)}
    size = SIZES[name]
    config = {
        "vision": {**siglip, **size["vision"]},
        "language": {**gemma, **size["both"], **size["language"]},
        "expert": {**gemma, **size["both"], **size["expert"]},
        "vocabulary": 64,
        "steps": 10,
        "pi05": pi05,
        "step_embedding": False,
        **size["rest"],
    }
    return Case(config, seed, size["image_mask"], size["words"], size["tokens"])


# LeRobot's training pass is written for 8 heads, whatever the configuration says.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vision": {"image_size": 28, "width": 32, "layers": 2, "heads": 2, "mlp": 48},
        "both": {},
        "language": {"width": 64, "mlp": 128},
        "expert": {"width": 48, "mlp": 96},
        "rest": {"action_dim": 7, "horizon": 4},
        "image_mask": [[True, True, False], [True, True, False]],  # the last camera is not there
        "words": (6, 3),
        "tokens": 8,
    },
    "grouped": {  # four query heads to a key/value head; another camera is missing in each row
        "vision": {"image_size": 42, "width": 48, "layers": 2, "heads": 4, "mlp": 96},
        "both": {"layers": 3, "kv_heads": 2, "head_dim": 12},
        "language": {"width": 72, "mlp": 144},
        "expert": {"width": 40, "mlp": 80},
        "rest": {"action_dim": 6, "horizon": 5},
        "image_mask": [[True, False, True], [True, True, False]],
        "words": (9, 4),
        "tokens": 9,
    },
    "small": {  # deeper, wider, longer; the camera in the middle is not there
        "vision": {"image_size": 56, "width": 64, "layers": 3, "heads": 4, "mlp": 160},
        "both": {"layers": 4, "head_dim": 32},
        "language": {"width": 128, "mlp": 256},
        "expert": {"width": 96, "mlp": 192},
        "rest": {"action_dim": 32, "horizon": 10, "vocabulary": 200},
        "image_mask": [[True, False, True], [True, False, True]],
        "words": (4, 11),
        "tokens": 16,
    },
}


def inputs(case: Case) -> dict[str, np.ndarray]:
    config, batch, cameras = case.config, len(case.words), len(case.image_mask[0])
    size, chunk = config["vision"]["image_size"], (batch, config["horizon"], config["action_dim"])

    def whole(key: str, shape: tuple[int, ...], low: int, high: int) -> np.ndarray:
        return np.floor((spread(key, shape, case.seed) / np.sqrt(12) + 0.5) * (high - low) + low).astype(np.int64)

    def real(key: str, shape: tuple[int, ...]) -> np.ndarray:
        return spread(key, shape, case.seed).astype(np.float32)

    used = np.arange(case.tokens)[None] < np.array(case.words)[:, None]
    return {
        "images": whole("images", (batch, cameras, size, size, 3), 0, 256).astype(np.uint8),
        "image_mask": np.array(case.image_mask),
        "tokens": whole("tokens", (batch, case.tokens), 1, config["vocabulary"]) * used,  # padded with 0
        "token_mask": used,
        "state": real("state", (batch, config["action_dim"])),
        "noise": real("noise", chunk),
        "actions": real("actions", chunk),
        "x_t": real("x_t", chunk),
        "step_t": np.array([0.7, 0.1], np.float32),
        "loss_t": np.array([0.9, 0.35], np.float32),
    }


@dataclass(frozen=True)
class Reference:
    """LeRobot's model behind the arguments of ours."""

    model: Any
    pi05: bool
    given: dict[str, Tensor]

    @property
    def seen(self) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        pixels = self.given["images"].permute(1, 0, 4, 2, 3).float() / 255 * 2 - 1  # as its processor and policy do
        return list(pixels), list(self.given["image_mask"].T), self.given["tokens"], self.given["token_mask"]

    @property
    def state(self) -> tuple[Tensor, ...]:
        return () if self.pi05 else (self.given["state"],)

    def sample(self) -> tuple[Tensor, Tensor]:
        """-> actions, and the embedded time of every step (steps, expert width)."""
        with lerobot_pi0.spied_times() as times:
            actions = self.model.sample_actions(*self.seen, *self.state, noise=self.given["noise"])
        return actions, torch.stack([time[0] for time in times])

    def loss(self) -> Tensor:
        """(batch,)"""
        given = self.given
        squares = self.model.forward(*self.seen, *self.state, given["actions"], given["noise"], given["loss_t"])
        return squares.mean((1, 2))

    def prefix_and_step(self) -> dict[str, Tensor]:
        mask, cache = lerobot_pi0.embed_and_read(self.model, *self.seen)
        velocity = self.model.denoise_step(
            **({} if self.pi05 else {"state": self.given["state"]}),
            prefix_pad_masks=mask,
            past_key_values=cache,
            x_t=self.given["x_t"],
            timestep=self.given["step_t"],
        )
        layers = [(keys, values) for keys, values, _ in cache]
        keys, values = (torch.stack(part).permute(1, 3, 0, 2, 4)[mask] for part in zip(*layers, strict=True))
        return {"mask": mask, "keys": keys, "values": values, "step": velocity}  # (tokens, layers, kv_heads, head_dim)


@torch.no_grad()
def compute(case: Case) -> dict[str, np.ndarray]:
    given = inputs(case)
    tensors = {name: torch.from_numpy(array) for name, array in given.items()}
    exact, mixed = (
        Reference(lerobot_pi0.build(case.config, case.seed, dtype), case.config["pi05"], tensors)
        for dtype in ("float32", "bfloat16")
    )
    sample, time = exact.sample()
    found = {
        **exact.prefix_and_step(),
        "sample": sample,
        "time": time.float(),
        "loss": exact.loss(),
        "sample_bf16": mixed.sample()[0].float(),
        "step_bf16": mixed.prefix_and_step()["step"].float(),
    }
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {
        "config": np.array(json.dumps(case.config)),
        "seed": np.array(case.seed),
        "versions": np.array(json.dumps(versions)),
        **given,
        **{name: tensor.numpy() for name, tensor in found.items()},
    }


def main() -> None:
    torch.set_num_threads(THREADS)
    FOLDER.mkdir(exist_ok=True)
    for name in SIZES:
        for family, pi05 in (("pi0", False), ("pi05", True)):
            path = FOLDER / f"{family}_{name}.npz"
            found = compute(case(name, pi05))
            np.savez_compressed(path, **found)
            floor = np.abs(found["sample_bf16"] - found["sample"]).max()
            largest = np.abs(found["sample"]).max()
            print(
                f"{path.name}: {path.stat().st_size / 1e3:.0f} kB, |action| up to {largest:.2f}, bf16 floor {floor:.1e}"
            )


if __name__ == "__main__":
    main()
