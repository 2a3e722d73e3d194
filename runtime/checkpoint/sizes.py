"""A model's sizes from the shapes of its tensors, and what shapes cannot say: heads."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.model.pi0 import GEMMA_2B, GEMMA_300M, SIGLIP, GemmaConfig, Pi0Config
from hotpolicy.runtime.model.vision import VisionConfig
from hotpolicy.runtime.model.weights import Depths

Shape = tuple[int, ...]

VARIANTS = {
    "gemma_2b": GEMMA_2B,
    "gemma_300m": GEMMA_300M,
    "dummy": GemmaConfig(width=64, layers=4, mlp=128, heads=8, kv_heads=1, head_dim=16),  # openpi's, for tests
}


@dataclass(frozen=True, slots=True)
class Heads:
    """What no shape tells. None: taken from the published model of the same widths."""

    head_dim: int | None = None  # of the language model and the action expert
    vision: int | None = None  # attention heads of the vision tower


def infer_config(
    shapes: Mapping[str, Shape], depths: Depths, pi05: bool, horizon: int, steps: int, heads: Heads
) -> Pi0Config:
    """`shapes` by our parameter names. A size is what most tensors that have it say, so that one wrong tensor is
    found by name later instead of bending the model. Raises BundleError when heads are needed and not given."""
    language = _gemma(shapes, "language", depths.language, "input_layernorm.weight", heads)
    norm = "input_layernorm.dense.weight" if pi05 else "input_layernorm.weight"
    return Pi0Config(
        vision=_vision(shapes, depths.vision, heads),
        language=language,
        expert=_gemma(shapes, "expert", depths.expert, norm, heads),
        vocabulary=shapes["embedding.weight"][0],
        action_dim=_most(shapes, ["action_out_proj.bias", "action_out_proj.weight"], 0),
        horizon=horizon,
        steps=steps,
        pi05=pi05,
    )


def variant_of(width: int, mlp: int) -> str | None:
    """The published model of these widths."""
    return next((name for name, known in VARIANTS.items() if (known.width, known.mlp) == (width, mlp)), None)


def _gemma(shapes: Mapping[str, Shape], stack: str, layers: int, norm: str, heads: Heads) -> GemmaConfig:
    def of(name: str, axis: int) -> int:
        return _most(shapes, [f"{stack}.{i}.{name}" for i in range(layers)], axis)

    width = of(norm, -1)
    mlp, inner, kv = of("mlp.gate_proj.weight", 0), of("self_attn.q_proj.weight", 0), of("self_attn.k_proj.weight", 0)
    known = variant_of(width, mlp)
    head_dim = heads.head_dim or (VARIANTS[known].head_dim if known else None)
    if head_dim is None:
        raise BundleError(
            f"{stack}: width {width} and mlp {mlp} are no published model's, so the size of a head is not known; "
            "give head_dim in the settings"
        )
    if inner % head_dim or kv % head_dim:
        raise BundleError(f"{stack}: head_dim {head_dim} does not divide {inner} (queries) and {kv} (keys)")
    return GemmaConfig(width, layers, mlp, inner // head_dim, kv // head_dim, head_dim)


def _vision(shapes: Mapping[str, Shape], layers: int, heads: Heads) -> VisionConfig:
    width = _most(shapes, [f"vision.layers.{i}.layer_norm1.weight" for i in range(layers)], 0)
    mlp = _most(shapes, [f"vision.layers.{i}.fc1.bias" for i in range(layers)], 0)
    patch_shape, places = shapes["vision.patch_embedding.weight"], shapes["vision.position_embedding"][0]
    patch, side = patch_shape[-1], math.isqrt(places)
    if len(patch_shape) != 4 or side * side != places:
        raise BundleError(f"vision: expected a square number of patches, got {places} of shape {patch_shape}")
    count = heads.vision or (SIGLIP.heads if (width, mlp) == (SIGLIP.width, SIGLIP.mlp) else None)
    if count is None:
        raise BundleError(
            f"vision: width {width} and mlp {mlp} are not the published tower's, so its number of heads is not known; "
            "give vision_heads in the settings"
        )
    if width % count:
        raise BundleError(f"vision: {count} heads do not divide width {width}")
    return VisionConfig("siglip", side * patch, width, layers, count, mlp, patch)


def _most(shapes: Mapping[str, Shape], names: Iterable[str], axis: int) -> int:
    """The size along an axis that most of these tensors have."""
    sizes = Counter(shapes[name][axis] for name in names if shapes[name])
    return sizes.most_common(1)[0][0] if sizes else 0
