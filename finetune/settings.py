"""How a tuning run is done. Budgets are in steps, so that a busy machine learns as much as an idle one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from hotpolicy.runtime.errors import ConfigError

Caching = Literal["auto", "require", "off"]


@dataclass(frozen=True, slots=True)
class TuneConfig:
    """Raises ConfigError naming the field when a value is not allowed."""

    strategy: str = "expert"  # heads, expert, top-N, full or progressive
    steps: int = 450
    rate: float | None = None  # peak learning rate; None: the strategy's own
    batch: int = 32  # frames
    draws: int = 4  # of noise and time per frame
    replay: float = 0.5  # share of every batch taken from old tasks
    warmup: int = 20  # steps
    floor: float = 0.05  # of the peak rate, where the cosine ends
    decay: float = 0.01  # weight decay
    clip: float = 1.0  # largest norm of the gradient
    ema: float = 0.99
    evaluate_every: int = 90  # steps
    watched: int = 96  # held-out frames of the new tasks, and of the old ones, at most
    patience: int | None = None  # evaluations without improvement before it stops; None: all steps
    seconds: float | None = None  # a cap that may end a run early; None: none
    caching: Caching = "auto"  # K/V of frozen prefixes: auto computes them anew when they would not fit, and says so
    cache_bytes: int = 1 << 30  # the most they may take
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in _BOUNDS:
            value = getattr(self, name)
            optional = name in ("rate", "patience", "seconds")
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (value is None and optional) and not (number and low <= value <= high):
                raise ConfigError(f"{name}: expected a number from {low:g} to {high:g}, got {value!r}")
            if number and name in _WHOLE and value != int(value):
                raise ConfigError(f"{name}: expected a whole number, got {value!r}")
        if self.caching not in ("auto", "require", "off"):
            raise ConfigError(f"caching: expected auto, require or off, got {self.caching!r}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TuneConfig:
        """Raises ConfigError for a field that is unknown."""
        if unknown := sorted(set(data) - {field.name for field in fields(cls)}):
            raise ConfigError(f"tuning: unknown field {unknown[0]!r}")
        return cls(**data)


_BOUNDS = (
    ("steps", 1, 10_000_000),
    ("rate", 1e-9, 1.0),
    ("batch", 1, 65_536),
    ("draws", 1, 64),
    ("replay", 0.0, 0.95),
    ("warmup", 0, 1_000_000),
    ("floor", 0.0, 1.0),
    ("decay", 0.0, 1.0),
    ("clip", 1e-6, 1e6),
    ("ema", 0.0, 0.99999),
    ("evaluate_every", 1, 10_000_000),
    ("watched", 1, 100_000),
    ("patience", 1, 10_000),
    ("seconds", 0.1, 1e7),
    ("cache_bytes", 0, 1 << 50),
    ("seed", 0, 2**63 - 1),
)
_WHOLE = {"steps", "batch", "draws", "warmup", "evaluate_every", "watched", "patience", "cache_bytes", "seed"}
