"""What every strategy would take on this machine: memory and time, which of them fit, and which one to choose.

Arithmetic over what gauge.py measured of one frame. Memory is that of the process at its peak: what is loaded already,
and what training adds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from hotpolicy.finetune.gauge import Cost
from hotpolicy.finetune.settings import TuneConfig

FP32 = 4  # bytes
COPIES, MOMENTS = 2, 2  # of each number that learns: itself and its average; AdamW's memory
OPTIMISER_S = 4e-9  # seconds for a parameter's step of AdamW and of the average, one thread; see bench/budget.py
# Of activations: the holes that they leave when they are freed. The C library's heap keeps blocks below 32 MB for the
# process; gradients that stay fill the holes. Measured with bench/budget.py: lora, which has hardly any, takes 0.6 GB
# less of 3.7 where every block above 1 MB is given back at once (MALLOC_MMAP_THRESHOLD_), for a fifth more of the
# processor's time. So it is done where layers are computed again, because memory is short.
HOLES = 0.5
MARGIN = 0.1  # of the memory that is available stays so
PREFERENCE = ("expert", "lora-expert", "heads")  # what to take first where only the motion is new


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the peak."""

    loaded: int  # the process before training: program, weights, pictures
    weights: int  # own copies of what learns, and their average
    gradients: int
    optimiser: int  # AdamW's two moments
    best: int  # the best weights so far, where a run may end with them
    activations: int  # of the frames computed at one time
    holes: int  # that freed activations leave and no gradient fills
    folding: int  # at the end: weights that adapters are folded into, beyond what training gives back before
    cache: int  # K/V in memory

    @property
    def total(self) -> int:
        """Activations are freed as gradients come, but to the allocator, which keeps them: measured peaks are near
        the sum (bench/budget.py)."""
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True, slots=True)
class Plan:
    config: TuneConfig
    memory: Memory
    trained: int  # parameters, in the stage that has most
    step_s: float
    total_s: float  # all steps, and the frames that are read once
    kept: str  # prefixes: "memory", "disk" or "no"
    available: int  # bytes, for the whole process

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.available


def least_bytes(trained: int) -> int:
    """What so many parameters that learn take at the least, whatever is computed with them."""
    return (COPIES + 1 + MOMENTS) * FP32 * trained


def available_bytes(loaded: int, folder: Path = Path("/sys/fs/cgroup")) -> int:
    """What this process may take in all, with a margin: what it has, and what the machine (and its control group, of
    a container) would still give. Beside a server that is running this counts the server, too."""
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(meminfo["MemAvailable"].split()[0]) * 1024
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        if limit.isdigit():
            free = min(free, int(limit) - int(used))
    except OSError:  # no control group, or another version of them
        pass
    return loaded + int(max(0, free) * (1 - MARGIN))


def resident_bytes() -> int:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@dataclass(frozen=True, slots=True)
class Situation:
    """What a plan is made for, besides the strategy."""

    frames: int  # all that are trained on or watched
    loaded: int  # bytes of the process, with weights and pictures
    available: int  # bytes it may take in all


def plan(costs: Sequence[Cost], shares: Sequence[float], config: TuneConfig, given: Situation) -> Plan:
    """`costs` of the strategy's stages, which take these `shares` of the steps."""
    parts = [_memory(cost, given, config) for cost in costs]
    kept = [_kept(cost, given.frames, config) for cost in costs]
    steps = [
        config.batch * _seconds(cost, where != "no", config.recompute) + OPTIMISER_S * cost.trained
        for cost, where in zip(costs, kept, strict=True)
    ]
    reading = (given.frames * cost.prefix_seconds for cost, where in zip(costs, kept, strict=True) if where != "no")
    step_s = sum(share * step for share, step in zip(shares, steps, strict=True))
    return Plan(
        config=config,
        memory=max(parts, key=lambda memory: memory.total),
        trained=max(cost.trained for cost in costs),
        step_s=step_s,
        total_s=step_s * config.steps + max(reading, default=0.0),
        kept=kept[0],
        available=given.available,
    )


def relief(costs: Sequence[Cost], shares: Sequence[float], config: TuneConfig, given: Situation) -> Plan | None:
    """The mildest change of a configuration that does not fit with which it would; None when there is none."""
    plans = (plan(costs, shares, change, given) for change in _milder(config))
    return next((found for found in plans if found.fits), None)


def choose(plans: Sequence[Plan], seconds: float | None = None, advised: str = "expert") -> Plan | None:
    """What the relevance report advises, if it fits memory and, if given, time; else the first of `PREFERENCE` that
    does."""
    good = {p.config.strategy: p for p in plans if p.fits and (seconds is None or p.total_s <= seconds)}
    return next((good[name] for name in (advised, *PREFERENCE) if name in good), None)


def _milder(config: TuneConfig) -> Iterator[TuneConfig]:
    accumulate = config.accumulate
    while accumulate < config.batch:
        accumulate = min(config.batch, 2 * accumulate)
        yield replace(config, accumulate=accumulate)
    if not config.recompute:
        yield replace(config, recompute=True)
        yield replace(config, recompute=True, accumulate=config.batch)
    if config.cache_bytes:
        yield replace(config, cache_bytes=0)
        yield replace(config, cache_bytes=0, recompute=True, accumulate=config.batch)


def _seconds(cost: Cost, kept: bool, recompute: bool) -> float:
    """Of a frame."""
    return cost.seconds - (cost.prefix_seconds if kept else 0.0) + (cost.there_seconds if recompute else 0.0)


def _kept(cost: Cost, frames: int, config: TuneConfig) -> str:
    if not cost.cache or config.caching == "off":
        return "no"
    if cost.cache * frames <= config.cache_bytes:
        return "memory"
    return "disk" if cost.cache * frames <= config.disk_bytes else "no"


def _memory(cost: Cost, given: Situation, config: TuneConfig) -> Memory:
    per_frame = cost.kept_recomputing if config.recompute else cost.kept
    activations, gradients = config.at_once * (per_frame + 2 * cost.widest), FP32 * cost.trained
    holes = 0 if config.recompute else max(0, int(HOLES * activations) - gradients)
    keeps = config.patience is not None or config.strategy == "progressive"
    return Memory(
        loaded=given.loaded,
        weights=COPIES * FP32 * cost.trained,
        gradients=gradients,
        optimiser=MOMENTS * FP32 * cost.trained,
        best=FP32 * cost.trained if keeps else 0,
        activations=activations,
        holes=holes,
        folding=max(0, cost.folded - activations - holes - gradients),
        cache=cost.cache * given.frames if _kept(cost, given.frames, config) == "memory" else 0,
    )
