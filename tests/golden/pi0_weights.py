"""Weights that need no storing: every parameter of a pi0 or pi0.5 model, made from its published name and a seed.

Numbers come from raw Philox bits, whose stream numpy promises never to change, by exact arithmetic: the same on
every machine and version. Nothing is left at a start value that would hide a mistake: norm weights, biases and
pi0.5's modulations are all away from zero.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

GAINS = {  # of a matrix, on top of 1 / sqrt(inputs); time's is larger, so that a small mistake in time is seen
    "action_time_mlp_in.weight": 3.0,
    "time_mlp_in.weight": 2.0,
    "dense.weight": 0.5,
}


def spread(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Uniform with mean 0 and variance 1, float64."""
    digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
    bits = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(math.prod(shape))
    return (((bits >> np.uint64(11)) * 2.0**-53 * 2 - 1) * math.sqrt(3)).reshape(shape)


def weight(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The parameter of this published name (without a leading `model.`), float32."""
    numbers = spread(name, shape, seed)
    if name.endswith(".bias"):
        numbers = 0.2 * numbers
    elif "position_embedding" in name:
        numbers = 0.5 * numbers
    elif "embed_tokens" in name:
        numbers = numbers / math.sqrt(shape[1])  # it is multiplied by this again
    elif len(shape) > 1:
        numbers = _gain(name) * numbers / math.sqrt(math.prod(shape[1:]))
    elif "vision_tower" in name:  # LayerNorm multiplies by its weight, Gemma's RMSNorm by one more than it
        numbers = 1 + 0.3 * numbers
    else:
        numbers = 0.3 * numbers
    return numbers.astype(np.float32)


def _gain(name: str) -> float:
    return next((gain for ending, gain in GAINS.items() if name.endswith(ending)), 1.0)
