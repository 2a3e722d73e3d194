"""How a tuning run is done. Budgets are in steps, so that a busy machine learns as much as an idle one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from hotpolicy.runtime.errors import ConfigError

Caching = Literal["auto", "require", "off"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class TuneConfig:
    """Raises ConfigError naming the field when a value is not allowed."""

    strategy: str = "expert"  # one of strategy.NAMES
    steps: int = 450
    rate: float | None = None  # peak learning rate; None: the strategy's own
    batch: int = 32  # frames of an optimiser step
    accumulate: int = 1  # parts a batch is computed in, one after another, where memory is short
    recompute: bool = False  # activations of layers are not kept but computed again on the way back
    precision: Precision = "fp32"  # bf16: matrix products under autocast; what learns, and its average, stay in fp32
    draws: int = 4  # of noise and time per frame
    lora_rank: int = 8
    lora_alpha: float = 16.0  # adapters count alpha / rank times
    replay: float = 0.5  # share of every batch taken from old tasks
    fresh: float = 0.5  # share of the rest taken from episodes no earlier run has seen, where some are set apart
    warmup: int = 20  # steps
    floor: float = 0.05  # of the peak rate, where the cosine ends
    decay: float = 0.01  # weight decay
    clip: float = 1.0  # largest norm of the gradient
    ema: float = 0.99
    evaluate_every: int = 90  # steps
    watched: int = 96  # held-out frames of the new tasks, and of the old ones, at most
    patience: int | None = None  # evaluations without gain before it ends, with the best; None: all steps, the last
    seconds: float | None = None  # a cap that may end a run early; None: none
    caching: Caching = "auto"  # K/V of frozen prefixes: auto computes them anew when they would not fit, and says so
    cache_bytes: int = 1 << 30  # the most they may take in memory
    disk_bytes: int = 8 << 30  # and in a file, where there is a folder for it, from run to run
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
        for name, allowed in (("caching", get_args(Caching)), ("precision", get_args(Precision))):
            if (value := getattr(self, name)) not in allowed:
                raise ConfigError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
        if self.accumulate > self.batch:
            raise ConfigError(f"accumulate: expected at most {self.batch}, the batch, got {self.accumulate}")

    @property
    def at_once(self) -> int:
        """Frames that are ever computed at one time."""
        return -(-self.batch // self.accumulate)

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
    ("accumulate", 1, 65_536),
    ("lora_rank", 1, 4096),
    ("lora_alpha", 1e-3, 1e5),
    ("draws", 1, 64),
    ("replay", 0.0, 0.95),
    ("fresh", 0.0, 1.0),
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
    ("disk_bytes", 0, 1 << 50),
    ("seed", 0, 2**63 - 1),
)
_WHOLE = {
    "steps", "batch", "accumulate", "lora_rank", "draws", "warmup", "evaluate_every", "watched", "patience",
    "cache_bytes", "disk_bytes", "seed",
}  # fmt: skip
