"""`hotpolicy dataset check | repair | show`: what is in a folder of demonstrations, and whether all of it is whole."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from hotpolicy.launch import console
from hotpolicy.launch.options import AsJson

dataset = typer.Typer(no_args_is_help=True, help="Look into a dataset of demonstrations, check it, mend it.")

Folder = Annotated[Path, typer.Argument(help="Dataset folder (LeRobotDataset v3.0), ours or LeRobot's.")]
DAMAGED = 2


@dataset.command()
def check(folder: Folder, as_json: AsJson = False) -> None:
    """Read every byte and name each damage with its file and episode. Exit code 0: all is whole, 2: it is not."""
    from hotpolicy.finetune.inspection import check as look

    found, damages = look(folder)
    if as_json:
        typer.echo(json.dumps(report(found, damages), indent=2))
    else:
        console.show([asdict(damage) for damage in damages], ("file", "episode", "what"), False) if damages else None
        for file in found.leftovers:
            typer.echo(f"left of a recording that never ended, or one that goes on: {file}")
        if extra := found.uncounted:
            typer.echo(f"episodes that info.json does not count: {', '.join(map(str, extra))}")
        episodes = found.info.total_episodes
        typer.echo(f"{len(damages)} damages in {episodes} episodes" if damages else f"{episodes} episodes, all whole")
    if damages:
        raise typer.Exit(DAMAGED)


@dataset.command()
def show(folder: Folder, as_json: AsJson = False) -> None:
    """List the episodes, the totals, the cameras and what range each joint went through."""
    from hotpolicy.finetune.dataset import Dataset
    from hotpolicy.finetune.description import describe

    whole = describe(Dataset.open(folder))
    if as_json:
        typer.echo(json.dumps(whole, indent=2))
        return
    console.show(
        whole["episodes"], ("episode", "task", "frames", "seconds", "success", "interventions", "versions"), False
    )
    for name in ("totals", "cameras"):
        typer.echo()
        console.show_one(whole[name], False)
    typer.echo()
    console.show(whole["joints"], ("joint", "lowest", "highest", "lowest_action", "highest_action"), False)


def report(found: Any, damages: list[Any]) -> dict[str, Any]:
    return {
        "episodes": found.info.total_episodes,
        "damages": [asdict(damage) for damage in damages],
        "leftovers": found.leftovers,
        "uncounted": found.uncounted,
    }
