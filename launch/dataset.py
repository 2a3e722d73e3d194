"""`hotpolicy dataset check | repair | show`: what is in a folder of demonstrations, and whether all of it is whole."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
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
    from hotpolicy.finetune.storage.damage import counted
    from hotpolicy.finetune.storage.inspection import check as look

    found, damages = look(folder)
    if as_json:
        typer.echo(json.dumps(report(found, damages), indent=2))
    else:
        for line in lines(damages):
            typer.echo(line)
        for file in found.gathered():
            typer.echo(f"left of a recording that never ended, or one that goes on: {file}")
        if extra := found.uncounted:
            typer.echo(f"episodes that info.json does not count: {', '.join(map(str, extra))}")
        episodes = counted(found.info.total_episodes, "episode")
        typer.echo(f"{counted(len(damages), 'damage')} in {episodes}" if damages else f"{episodes}, all whole")
        if damages:
            typer.echo(f"what can be done: hotpolicy dataset repair --dry-run {shlex.quote(str(folder))}")
    if damages:
        raise typer.Exit(DAMAGED)


@dataset.command()
def show(folder: Folder, as_json: AsJson = False) -> None:
    """List the episodes, the totals, the cameras and what range each joint went through."""
    from hotpolicy.finetune.dataset import Dataset
    from hotpolicy.finetune.storage.description import describe

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
    from hotpolicy.finetune.storage.damage import counted
    from hotpolicy.finetune.storage.repair import carry_out, planned

    with planned(folder.resolve(), keep_altered) as made:
        steps = made.lines()
        before = None if dry_run else carry_out(made, drop)
    if as_json:
        done = {"steps": steps, "done": not dry_run, "episodes": len(made.keep), "before": before and str(before)}
        typer.echo(json.dumps(done, indent=2))
        return
    for line in steps:
        typer.echo(line)
    episodes = counted(len(made.keep), "episode")
    if dry_run:
        would = f"{counted(len(steps), 'thing')} to do, {episodes} would be whole; nothing was changed"
        typer.echo(would if steps else "nothing to do")
    else:
        typer.echo(f"{episodes}, all whole")
    if before is not None:
        typer.echo(f"as it was: {before}")


def report(found: Any, damages: list[Any]) -> dict[str, Any]:
    return {
        "episodes": found.info.total_episodes,
        "damages": [asdict(damage) for damage in damages],
        "leftovers": found.leftovers,
        "uncounted": found.uncounted,
    }


def lines(damages: Sequence[Any]) -> list[str]:
    """For people: of the dataset as a whole, then episode by episode. No table: a file's name stays in one piece."""
    told: list[str] = []
    for episode in sorted({damage.episode for damage in damages}, key=lambda number: -1 if number is None else number):
        told.append("the dataset as a whole" if episode is None else f"episode {episode}")
        told += [f"  {damage.file}: {damage.what}" for damage in damages if damage.episode == episode]
    return told
