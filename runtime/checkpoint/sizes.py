"""A model's sizes from the shapes of its tensors, and what shapes cannot say: heads."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.model.pi0 import GEMMA_2B, GEMMA_300M, SIGLIP, GemmaConfig, Pi0Config, VisionConfig
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
    return Pi0Config(
        vision=_vision(shapes, depths.vision, heads),
        language=_gemma(shapes, "language", depths.language, heads),
        expert=_gemma(shapes, "expert", depths.expert, heads),
        vocabulary=_most(shapes, [("embedding.weight", 0)]),
        action_dim=_most(
            shapes, [("action_out_proj.bias", 0), ("action_out_proj.weight", 0), ("action_in_proj.weight", -1)]
        ),
        horizon=horizon,
        steps=steps,
        pi05=pi05,
    )


def variant_of(width: int, mlp: int) -> str | None:
    """The published model of these widths."""
    return next((name for name, known in VARIANTS.items() if (known.width, known.mlp) == (width, mlp)), None)


def _gemma(shapes: Mapping[str, Shape], stack: str, layers: int, heads: Heads) -> GemmaConfig:
    def of(*places: tuple[str, int]) -> int:
        return _most(shapes, [(f"{stack}.{i}.{name}.weight", axis) for i in range(layers) for name, axis in places])

    width = of(("mlp.gate_proj", -1), ("mlp.up_proj", -1), ("self_attn.q_proj", -1))
    mlp = of(("mlp.gate_proj", 0), ("mlp.up_proj", 0), ("mlp.down_proj", -1))
    inner = of(("self_attn.q_proj", 0), ("self_attn.o_proj", -1))
    kv = of(("self_attn.k_proj", 0), ("self_attn.v_proj", 0))
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
    def of(*places: tuple[str, int]) -> int:
        return _most(shapes, [(f"vision.layers.{i}.{name}", axis) for i in range(layers) for name, axis in places])

    width = of(("layer_norm1.weight", 0), ("layer_norm2.weight", 0), ("q_proj.bias", 0))
    mlp = of(("fc1.bias", 0), ("fc1.weight", 0), ("fc2.weight", -1))
    patch = _most(shapes, [("vision.patch_embedding.weight", -1)])
    places = _most(shapes, [("vision.position_embedding", 0)])
    side = math.isqrt(places)
    if not patch or not side or side * side != places:
        raise BundleError(f"vision: expected a square number of patches, got {places} of {patch} pixels")
    count = heads.vision or (SIGLIP.heads if (width, mlp) == (SIGLIP.width, SIGLIP.mlp) else None)
    if count is None:
        raise BundleError(
            f"vision: width {width} and mlp {mlp} are not the published tower's, so its number of heads is not known; "
            "give vision_heads in the settings"
        )
    if width % count:
        raise BundleError(f"vision: {count} heads do not divide width {width}")
    return VisionConfig("siglip", side * patch, width, layers, count, mlp, patch)


def _most(shapes: Mapping[str, Shape], places: Iterable[tuple[str, int]]) -> int:
    """The size that most of these axes have."""
    sizes = Counter(shapes[name][axis] for name, axis in places if shapes[name])
    return sizes.most_common(1)[0][0] if sizes else 0
