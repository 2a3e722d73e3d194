"""LeRobot's answers, our model with the same weights, and how far the two lie apart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from golden.pi0_weights import weight
from torch import Tensor

from hotpolicy.runtime.engine.torch_place import Place
from hotpolicy.runtime.model import pi0
from hotpolicy.runtime.model.pi0 import Pi0, Pi0Config
from hotpolicy.runtime.model.weights import Depths, parameters

FOLDER = Path(__file__).parent / "golden" / "pi0"
FAMILIES = ("pi0", "pi05")
SIZES = ("tiny", "grouped", "small")
PARTS = ("keys", "values", "step", "sample", "time", "loss")


@dataclass(frozen=True)
class Golden:
    """One file of golden/pi0."""

    config: Pi0Config
    seed: int
    tensors: Mapping[str, Tensor]  # inputs and LeRobot's answers; keys, values (tokens, layers, kv_heads, head_dim)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def floor(self, part: str) -> float:
        """How far LeRobot's own bf16 lies from its fp32, of `step` or `sample`."""
        return spread(self[f"{part}_bf16"], self[part])


def load(family: str, size: str) -> Golden:
    with np.load(FOLDER / f"{family}_{size}.npz") as file:
        config = Pi0Config.from_dict(json.loads(str(file["config"])))
        numbers = {name: file[name] for name in file if file[name].dtype.kind in "biuf"}
    seed = int(numbers.pop("seed"))
    return Golden(config, seed, {name: torch.from_numpy(array) for name, array in numbers.items()})


def fill(model: Pi0, seed: int) -> Pi0:
    """Every parameter by its published name, as LeRobot's model was filled."""
    config, ours = model.config, model.state_dict()
    depths = Depths(config.vision.layers, config.language.layers, config.expert.layers)
    made = {
        name: torch.from_numpy(weight(published, tuple(ours[name].shape), seed))
        for published, name in parameters(config.pi05, depths)
    }
    model.load_state_dict(made)  # strict
    return model.eval().requires_grad_(False)


def mix_as_lerobot(model: Pi0) -> Pi0:
    """The large matrices of the two language models to bf16; vision, projector, norms and heads stay fp32."""
    for name, parameter in model.named_parameters():
        if model.groups()[name].split(".")[0] in ("embedding", "language", "expert") and "norm" not in name:
            parameter.data = parameter.data.bfloat16()
    return model


def mix_as_served(model: Pi0) -> Pi0:
    """As our engine has it, and openpi: most of vision in bf16 too."""
    placed = Place(torch.device("cpu"), torch.bfloat16, threads=1).settle(model)
    assert isinstance(placed, Pi0)
    return placed


def answers(model: Pi0, golden: Golden) -> dict[str, Tensor]:
    """What our model says where LeRobot's answers are known, in their layout."""
    given = golden.tensors
    prefix = model.prefix(given["images"], given["image_mask"], given["tokens"], given["token_mask"])
    keys, values = (  # a row's tokens lie in the same order in both, whatever lies between them
        torch.stack(list(part)).permute(1, 3, 0, 2, 4)[prefix.mask] for part in (prefix.keys, prefix.values)
    )
    noise, state = given["noise"], given["state"]
    with spied_times() as times:
        sample = model.flow(prefix, state, noise)
    return {
        "keys": keys,
        "values": values,
        "step": model.step(prefix, state, given["x_t"], given["step_t"]),
        "sample": sample,
        "time": torch.stack([time.flatten(0, -2)[0] for time in times]),
        "loss": model.flow_loss(prefix, state, given["actions"], noise[:, None], given["loss_t"][:, None])[:, 0],
    }


@contextmanager
def spied_times() -> Iterator[list[Tensor]]:
    """Every embedded time (..., width) that our model computes meanwhile."""
    made: list[Tensor] = []
    real = pi0._time_embedding

    def spy(t: Tensor, width: int) -> Tensor:
        made.append(real(t, width))
        return made[-1]

    with mock.patch.object(pi0, "_time_embedding", spy):
        yield made


def gap(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference; infinite where a number is not one, or the shapes differ."""
    if ours.shape != theirs.shape or not ours.isfinite().all():
        return float("inf")
    return float((ours.double() - theirs.double()).abs().max())


def spread(ours: Tensor, theirs: Tensor) -> float:
    """Root mean square of the difference: rounding shows in it more steadily than in the largest."""
    return float((ours.double() - theirs.double()).pow(2).mean().sqrt())


def gaps(model: Pi0, golden: Golden) -> dict[str, float]:
    said = answers(model, golden)
    return {part: gap(said[part], golden[part]) for part in PARTS}
