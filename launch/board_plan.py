"""`hotpolicy finetune --plan --board NAME`: what each strategy would take on a robot's computer that is not here.

Arithmetic on published sizes. Nothing was run on a board, so no time is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from hotpolicy.finetune.blueprint import Blueprint, Drawn, Scene
from hotpolicy.finetune.budget import FP32, Plan, Situation, choose, plan, relief
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.launch import console
from hotpolicy.launch.planning import change, names
from hotpolicy.launch.versions import open_store, shipped
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.graphs.exported import Exported, is_exported
from hotpolicy.runtime.model.pi0 import PI0, PI05
from hotpolicy.runtime.transforms import Transforms
from hotpolicy.runtime.versions.boards import BOARDS, Board
from hotpolicy.runtime.versions.footprint import HELD, PROCESS_GB, SYSTEM_GB, WIDTHS, Footprint

ALL = "all"
GB = 1e9
DEMONSTRATED = 1000  # frames that are trained on or watched, assumed
SERVED = "bf16"  # a published model, by the server
# Name -> configuration, and the most tokens its instruction has (openpi's; pi0.5 has the state among them).
PUBLISHED = {"pi0": (PI0, 48), "pi0.5": (PI05, 200)}
SLOTS = 3  # cameras of both
COLUMNS = ("strategy", "learns", "model", "own", "grad", "optim", "activ", "K/V", "tune", "serve", "all")


@dataclass(frozen=True, slots=True)
class Subject:
    """What is tuned, and what the server beside it holds."""

    name: str
    model: dict[str, Any]  # as in a manifest
    scene: Scene
    served: float  # bytes of a weight


@dataclass(frozen=True, slots=True)
class Row:
    """One strategy on one board. Bytes."""

    plan: Plan
    instead: Plan | None  # where it does not fit: the mildest change with which it would
    server: int  # its process, the live version, and what the one before and the candidate do not share with it

    @property
    def settled(self) -> Plan:
        return self.instead or self.plan


def boards(name: str) -> list[Board]:
    """Raises ConfigError for a board that is not in the table."""
    if name == ALL:
        return list(BOARDS.values())
    if name not in BOARDS:
        raise ConfigError(f"board: expected one of {', '.join(BOARDS)}, or {ALL}, got {name!r}")
    return [BOARDS[name]]


def subjects(base: str | None, store: Path) -> list[Subject]:
    """The published models, or one of them, or a folder (sealed or exported), or a version in the store."""
    if base is None or base in PUBLISHED:
        return [_published(name) for name in ([base] if base else PUBLISHED)]
    folder = shipped(Path(base))
    if is_exported(folder):
        exported = Exported.glance(folder)
        chain, weights = [exported.bundle], Footprint.of_export(exported)
    else:
        opened = open_store(store)
        sealed = (folder / "manifest.json").is_file()
        chain = [Bundle.open(folder)] if sealed else opened.chain(opened.live() if base == "live" else base)
        if chain[0].manifest.kind == "delta":
            raise ConfigError(f"base: {folder} changes {chain[0].manifest.parent}: name the version, with --store")
        weights = Footprint.of_chain(chain)
    transforms, model = Transforms.of_chain(chain), dict(chain[-1].manifest.model)
    scene = Scene(len(transforms.cameras), model["config"]["vision"]["image_size"], transforms.tokenizer.max_tokens)
    return [Subject(chain[-1].id, model, scene, weights.bytes / weights.parameters)]


def rows(blueprint: Blueprint, subject: Subject, drawn: Sequence[Drawn], config: TuneConfig, board: Board) -> list[Row]:
    """One for each strategy."""
    found = []
    loaded = PROCESS_GB * GB + FP32 * blueprint.parameters  # tuning widens a version to fp32
    for one in drawn:
        server = PROCESS_GB * GB + subject.served * (blueprint.parameters + (HELD - 1) * one.changed)
        given = Situation(DEMONSTRATED, int(loaded), int((board.memory_gb - SYSTEM_GB) * GB - server))
        wanted, shares = replace(config, strategy=one.strategy.name), [stage.share for stage in one.strategy.stages]
        planned = plan(one.costs, shares, wanted, given)
        instead = None if planned.fits else relief(one.costs, shares, wanted, given)
        found.append(Row(planned, instead, int(server)))
    return found


def chosen(of: Sequence[Row]) -> Plan | None:
    """As given if anything fits so; else with the change that helps."""
    return choose([row.plan for row in of]) or choose([row.settled for row in of])


def show(board: str, base: str | None, store: Path, config: TuneConfig, as_json: bool) -> None:
    """Raises ConfigError, BundleError, UnknownVersion."""
    wanted, lines = boards(board), []
    for subject in subjects(base, store):
        blueprint = Blueprint(subject.model, subject.scene)
        drawn = [blueprint.draw(name, config) for name in names(blueprint.model)]
        by_board = {one.name: rows(blueprint, subject, drawn, config, one) for one in wanted}
        if as_json:
            lines += [{"model": subject.name, **line} for name in by_board for line in _lines(name, by_board[name])]
            continue
        typer.echo(
            f"{subject.name}, {blueprint.parameters / 1e6:,.0f} M parameters, {subject.scene.cameras} cameras, "
            f"batch {config.batch}: GB at the peak"
        )
        console.show([_parts(row) for row in next(iter(by_board.values()))], COLUMNS, False)
        typer.echo("")
        console.show(list(_verdicts(by_board)), ("strategy", *by_board), False)
        typer.echo("")
    if as_json:
        console.show([{"event": "plan", **line} for line in lines], (), True)
        return
    typer.echo(
        "Sums of published sizes: nothing was run on a board, and no time is promised. Assumed: "
        f"{SYSTEM_GB:g} GB for the system, {PROCESS_GB:g} GB for each of two processes, {DEMONSTRATED} frames of "
        "demonstrations. The server holds three versions, which share what is not tuned. Tuning is in fp32, on the "
        "processor."
    )


def _published(name: str) -> Subject:
    config, words = PUBLISHED[name]
    scene = Scene(SLOTS, config.vision.image_size, words)
    return Subject(name, {"family": "pi0", "config": config.to_dict()}, scene, WIDTHS[SERVED])


def _parts(row: Row) -> dict[str, str]:
    memory = row.plan.memory
    sizes = (
        memory.loaded, memory.weights + memory.best, memory.gradients, memory.optimiser,
        memory.activations + memory.holes + memory.folding,
        memory.cache, memory.total, row.server, memory.total + row.server + int(SYSTEM_GB * GB),
    )  # fmt: skip
    learns = f"{row.plan.trained / 1e6:,.0f}M" if row.plan.trained > 1e7 else f"{row.plan.trained / 1e6:.2f}M"
    words = (row.plan.config.strategy, learns, *(f"{size / GB:.1f}" for size in sizes))
    return dict(zip(COLUMNS, words, strict=True))


def _verdicts(by_board: dict[str, list[Row]]) -> Iterator[dict[str, str]]:
    best = {name: chosen(of) for name, of in by_board.items()}
    for place, first in enumerate(next(iter(by_board.values()))):
        cells = {name: _word(of[place], of[place].settled is best[name]) for name, of in by_board.items()}
        yield {"strategy": first.plan.config.strategy, **cells}


def _word(row: Row, take: bool) -> str:
    if row.plan.fits:
        return "take it" if take else "fits"
    if row.instead is None:
        return "too large"
    return ("take it, " if take else "") + f"with {change(row.plan.config, row.instead.config)}"


def _lines(board: str, of: Sequence[Row]) -> Iterator[dict[str, Any]]:
    best = chosen(of)
    for row in of:
        memory, settled = row.plan.memory, row.settled
        yield {
            "board": board,
            "strategy": row.plan.config.strategy,
            "trained": row.plan.trained,
            "bytes": {part: getattr(memory, part) for part in (*memory.__dataclass_fields__, "total")},
            "server": row.server,
            "system": int(SYSTEM_GB * GB),
            "available": row.plan.available,
            "fits": row.plan.fits,
            "chosen": settled is best,
            "instead": change(row.plan.config, row.instead.config) if row.instead else None,
        }
