"""`hotpolicy relevance`: new demonstrations against what a policy knows, before anything is trained."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotpolicy.launch.options import STORE, StoreFolder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from hotpolicy.finetune.findings import Finding
    from hotpolicy.finetune.relevance import JointRange, Relevance


def relevance(
    datasets: Annotated[list[Path], typer.Argument(help="Dataset folders with the new demonstrations.")],
    store: StoreFolder = STORE,
    base: Annotated[str, typer.Option(help="Version to compare with: an id, or live.")] = "live",
    threads: Annotated[int, typer.Option(min=1, help="Torch threads.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
) -> None:
    """Say how far demonstrations are from what a policy was made for: their ranges, what it makes of them as it is,
    whether its eyes and words know them, and what is odd about them; with advice on statistics and strategy.

    Nothing is trained. Exit code 2 when they should not be trained on as they are.
    """
    from rich.console import Console

    from hotpolicy.finetune.gate import Bounds
    from hotpolicy.finetune.settings import TuneConfig
    from hotpolicy.launch.job import Desk, Job, oddities
    from hotpolicy.launch.versions import open_store

    opened = open_store(store)
    spec = opened.open(opened.live() if base == "live" else base).manifest.spec
    found = oddities(datasets, spec)
    if any(finding.weight == "stop" for finding in found):
        if as_json:
            typer.echo(json.dumps({"findings": [asdict(finding) for finding in found], "strategy": None}))
        else:
            _print_findings(Console(), found)
        raise typer.Exit(2)
    report = Desk.open(Job(store, base, tuple(datasets), TuneConfig(), threads, True, 0, Bounds(), 0)).assess(found)
    if as_json:
        typer.echo(json.dumps(asdict(report)))
    else:
        _print(Console(), report)


def _print(console: Console, report: Relevance) -> None:
    console.print(_ranges("state", report.state))
    console.print(_ranges("action", report.action))
    for name, figures in report.new.items():
        console.print(
            f"{name}: loss {figures.loss:.3f}, action error {figures.error_deg:.2f} deg, as it is", highlight=False
        )
    for name, figures in report.old.items():
        console.print(f"{name} (rehearsed): loss {figures.loss:.3f}, {figures.error_deg:.2f} deg", highlight=False)
    if report.novelty is not None:
        console.print(
            f"what is seen: {report.novelty:.2f} times as far as what it knows is from itself", highlight=False
        )
    _print_findings(console, report.findings)
    for line in report.advice:
        console.print(line, highlight=False)


def _ranges(kind: str, joints: Sequence[JointRange]) -> object:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=f"{kind}, in units of the policy's statistics", title_justify="left", box=SIMPLE_HEAD)
    for name in ("joint", "lowest", "highest", "outside"):
        table.add_column(name, justify="left" if name == "joint" else "right")
    for joint in joints:
        table.add_row(joint.name, f"{joint.low:.1f}", f"{joint.high:.1f}", f"{joint.beyond:.1%}")
    return table


def _print_findings(console: Console, findings: Sequence[Finding]) -> None:
    for finding in findings:
        where = f" (episodes {', '.join(map(str, finding.episodes[:8]))})" if finding.episodes else ""
        console.print(f"{finding.weight}: {finding.kind}: {finding.text}{where}", highlight=False, markup=False)
