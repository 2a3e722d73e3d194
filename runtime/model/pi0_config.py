"""The shapes of pi0, pi0.5 and the nano preset: frozen dataclasses, and the published sizes. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class VisionConfig:
    kind: str  # "siglip": transformer over patches; "stem": three convolutions, one token per 8x8 pixels
    image_size: int  # pixels, square
    width: int
    layers: int = 0
    heads: int = 0
    mlp: int = 0
    patch: int = 14  # pixels
    channels: tuple[int, ...] = (32, 64)  # of a stem's first two convolutions

    @property
    def tokens(self) -> int:
        side = self.image_size // (8 if self.kind == "stem" else self.patch)
        return side * side


@dataclass(frozen=True, slots=True)
class GemmaConfig:
    width: int
    layers: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class Pi0Config:
    vision: VisionConfig
    language: GemmaConfig
    expert: GemmaConfig  # same layers, heads, kv_heads and head_dim as language: they share one attention
    vocabulary: int
    action_dim: int  # joints, or the width they are padded to
    horizon: int  # actions per chunk
    steps: int = 10  # Euler steps from noise to actions
    pi05: bool = False  # time through adaptive RMSNorm, state in the prompt
    step_embedding: bool = False  # a learned vector per action step; pi0 tells the steps apart by rotary position alone

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Pi0Config:
        """Raises TypeError or KeyError for fields that are unknown or missing."""
        known = {field.name for field in fields(cls)}
        if unknown := set(data) - known:
            raise TypeError(f"unknown fields {sorted(unknown)}")
        vision = dict(data["vision"])
        vision["channels"] = tuple(vision.get("channels", (32, 64)))
        return cls(
            **{
                **data,
                "vision": VisionConfig(**vision),
                "language": GemmaConfig(**data["language"]),
                "expert": GemmaConfig(**data["expert"]),
            }
        )


GEMMA_2B = GemmaConfig(width=2048, layers=18, mlp=16384, heads=8, kv_heads=1, head_dim=256)
GEMMA_300M = GemmaConfig(width=1024, layers=18, mlp=4096, heads=8, kv_heads=1, head_dim=256)
SIGLIP = VisionConfig("siglip", image_size=224, width=1152, layers=27, heads=16, mlp=4304)

PI0 = Pi0Config(SIGLIP, GEMMA_2B, GEMMA_300M, vocabulary=257152, action_dim=32, horizon=50)
PI05 = Pi0Config(SIGLIP, GEMMA_2B, GEMMA_300M, vocabulary=257152, action_dim=32, horizon=50, pi05=True)
NANO = Pi0Config(
    vision=VisionConfig("stem", image_size=64, width=128),
    language=GemmaConfig(width=128, layers=4, mlp=256, heads=4, kv_heads=1, head_dim=32),
    expert=GemmaConfig(width=96, layers=4, mlp=288, heads=4, kv_heads=1, head_dim=32),
    vocabulary=512,
    action_dim=6,
    horizon=8,
    steps=8,
    step_embedding=True,
)
