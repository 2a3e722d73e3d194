"""`hotpolicy finetune --plan`: what every strategy would take here and now, which fit, and which one to take."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hotpolicy.finetune.budget import (
    Plan,
    Situation,
    available_bytes,
    choose,
    least_bytes,
    plan,
    relief,
    resident_bytes,
)
from hotpolicy.finetune.frames import Frames
from hotpolicy.finetune.gauge import Gauge
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.finetune.strategy import strategy
from hotpolicy.runtime.errors import TuningError

if TYPE_CHECKING:
    from hotpolicy.runtime.model.vla import Vla

MB = 1e6


@dataclass(frozen=True, slots=True)
class Option:
    plan: Plan
    instead: Plan | None  # where it does not fit: the mildest change with which it would


def names(model: Vla) -> tuple[str, ...]:
    """The strategies a plan speaks of: those of the module, with half of the language layers as top-N."""
    layers = sum(group.startswith("language.") for group in set(model.groups().values()))
    return ("heads", "lora-expert", "expert", "lora", f"top-{max(1, layers // 2)}", "progressive", "full")


def survey(model: Vla, frames: Frames, total: int, config: TuneConfig, wanted: Sequence[str]) -> Iterator[Option]:
    """Measure each strategy in turn on some `frames` of the `total` that will be trained on or watched. Raises
    ConfigError for a strategy that this model does not have."""
    loaded = resident_bytes()
    given = Situation(total, loaded, available_bytes(loaded))
    for name in wanted:
        one = replace(config, strategy=name)
        stages, gauge = strategy(name, model).stages, Gauge(model, frames, one)
        sizes = dict(model.named_parameters())
        heaviest = max(sum(sizes[key].numel() for key in stage.learning(model)) for stage in stages)
        there_is_room = loaded + least_bytes(heaviest) < given.available
        costs = [gauge.measure(stage, backward=there_is_room) for stage in stages]
        shares = [stage.share for stage in stages]
        found = plan(costs, shares, one, given)
        yield Option(found, None if found.fits else relief(costs, shares, one, given))


def check(option: Option) -> None:
    """Raises TuningError for what does not fit, saying what would."""
    found = option.plan
    if found.fits:
        return
    text = (
        f"{found.config.strategy}: about {found.memory.total / MB:.0f} MB needed, {found.available / MB:.0f} MB are "
        "available"
    )
    if option.instead is None:
        raise TuningError(f"{text}; no smaller batch helps: choose heads, expert or lora-expert, see --plan")
    raise TuningError(
        f"{text}; with {change(found.config, option.instead.config)} it would be "
        f"{option.instead.memory.total / MB:.0f} MB"
    )


def change(before: TuneConfig, after: TuneConfig) -> str:
    """The options that turn one into the other, as they are typed."""
    parts = []
    if after.accumulate != before.accumulate:
        parts.append(f"--accumulate {after.accumulate}")
    if after.recompute and not before.recompute:
        parts.append("--recompute")
    if after.cache_bytes != before.cache_bytes:
        parts.append(f"--cache-mb {after.cache_bytes / MB:.0f}")
    return " ".join(parts)


def show(options: Sequence[Option], seconds: float | None, as_json: bool) -> None:
    chosen = choose([option.plan for option in options], seconds)
    if as_json:
        for option in options:
            typer.echo(json.dumps(to_dict(option, chosen)))
        return
    console = Console()
    console.print(table(options, chosen))
    console.print(
        f"{options[0].plan.available / MB:.0f} MB are available to the process, beside what runs now. "
        "The program and the pictures are counted with the weights."
    )


def table(options: Sequence[Option], chosen: Plan | None) -> Table:
    heads = ("strategy", "learns", "weights", "grads", "optim", "activ", "K/V", "total", "s/step", "all s", "")
    title = "MB at the peak of the process, and time, on this machine as it is now"
    rows = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 0), show_edge=False)
    for name in heads:
        rows.add_column(name, justify="left" if name in ("strategy", "") else "right", no_wrap=bool(name))
    for option in options:
        found, memory = option.plan, option.plan.memory
        figures = (
            memory.loaded + memory.weights + memory.best, memory.gradients, memory.optimiser,
            memory.activations + memory.holes + memory.folding,
            memory.cache, memory.total,
        )  # fmt: skip
        rows.add_row(
            found.config.strategy,
            f"{found.trained / 1e6:.2f}M",
            *(f"{value / MB:.0f}" for value in figures),
            f"{found.step_s:.2g}" if found.step_s < 1 else f"{found.step_s:.1f}",
            f"{found.total_s:.0f}",
            _word(option, found is chosen),
        )
    return rows


def to_dict(option: Option, chosen: Plan | None) -> dict[str, Any]:
    found = option.plan
    return {
        "event": "plan",
        "strategy": found.config.strategy,
        "trained": found.trained,
        "bytes": {part: getattr(found.memory, part) for part in (*found.memory.__dataclass_fields__, "total")},
        "available": found.available,
        "step_s": round(found.step_s, 4),
        "total_s": round(found.total_s, 1),
        "prefixes": found.kept,
        "fits": found.fits,
        "chosen": found is chosen,
        "instead": change(found.config, option.instead.config) if option.instead else None,
    }


def _word(option: Option, chosen: bool) -> str:
    if option.plan.fits:
        kept = {"memory": "", "disk": ", K/V on disk", "no": ""}[option.plan.kept]
        return ("take it" if chosen else "fits") + kept
    instead = option.instead
    return f"with {change(option.plan.config, instead.config)}" if instead else "too large"
