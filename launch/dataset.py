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
        for file in found.gathered():
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


@dataset.command()
def repair(
    folder: Folder,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    drop: Annotated[
        bool, typer.Option("--drop", help="Take damaged episodes out and number the others anew. Else they are named.")
    ] = False,
    keep_altered: Annotated[
        bool,
        typer.Option("--keep-altered", help="Keep files that can be read but are not as they were recorded."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Mend what a crash, a full disk or another tool left. The folder as it was stays beside, as NAME.before-repair."""
    from hotpolicy.finetune.repair import carry_out, planned

    with planned(folder.resolve(), keep_altered) as made:
        lines = made.lines()
        before = None if dry_run else carry_out(made, drop)
    if as_json:
        done = {"steps": lines, "done": not dry_run, "episodes": len(made.keep), "before": before and str(before)}
        typer.echo(json.dumps(done, indent=2))
        return
    for line in lines:
        typer.echo(line)
    if dry_run:
        typer.echo(f"{len(lines)} things to do, {len(made.keep)} episodes would be whole" if lines else "nothing to do")
    else:
        typer.echo(f"{len(made.keep)} episodes, all whole")
    if before is not None:
        typer.echo(f"as it was: {before}")


def report(found: Any, damages: list[Any]) -> dict[str, Any]:
    return {
        "episodes": found.info.total_episodes,
        "damages": [asdict(damage) for damage in damages],
        "leftovers": found.leftovers,
        "uncounted": found.uncounted,
    }
