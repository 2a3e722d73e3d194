"""`hotpolicy import`: a pi0 or pi0.5 checkpoint of openpi's or LeRobot's as a sealed policy version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hotpolicy.launch import console
from hotpolicy.launch.options import STORE, AsJson, StoreFolder

COLUMNS = ("part", "parameters", "loaded", "tied", "known_dead", "unknown", "missing")


def import_policy(
    path: Annotated[
        Path,
        typer.Argument(help="openpi's PyTorch folder, LeRobot's pretrained_model folder, or a .safetensors file."),
    ],
    store: StoreFolder = STORE,
    out: Annotated[
        Path | None, typer.Option(help="Folder to seal the version in, as OUT/<version>, instead of the store.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="A known robot's joints, cameras and training: aloha, droid, libero, so101.")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="The same for your robot, as a YAML file like the presets in launch/presets.")
    ] = None,
    stats: Annotated[
        Path | None,
        typer.Option(
            help="Normaliser statistics: openpi's norm_stats.json, LeRobot's .safetensors or a data set's stats.json."
        ),
    ] = None,
    asset: Annotated[
        str | None, typer.Option(help="Which robot's statistics, where openpi's assets folder has several.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="PaliGemma's sentencepiece model, if it is not in the checkpoint's folder.")
    ] = None,
    floor: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Smallest standard deviation, or half of q01 to q99, that a joint is given, in its unit. Without it "
            "a joint that never moved in the training data is refused.",
        ),
    ] = None,
    horizon: Annotated[int | None, typer.Option(min=1, help="Actions per chunk.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps from noise to actions. Default: 10.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=2, help="Longest instruction, in tokens. Default: pi0 48, pi0.5 200.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="How instructions were written in training: pi0, pi0_lerobot, pi05, or pi05_padded (LeRobot 0.4)."
        ),
    ] = None,
    normalisation: Annotated[
        str | None, typer.Option(help="mean_std or quantile. Default: pi0 mean_std, pi0.5 quantile.")
    ] = None,
    relative: Annotated[
        str | None,
        typer.Option(
            help="Joints whose actions were trained as differences from the state: names with commas, all, or none."
        ),
    ] = None,
    rate_hz: Annotated[float | None, typer.Option(min=0.1, help="Actions per second.")] = None,
    slot: Annotated[
        list[str] | None, typer.Option(help="SLOT=CAMERA, or SLOT=none for an image the robot has not; repeatable.")
    ] = None,
    camera: Annotated[
        list[str] | None, typer.Option(help="NAME=HEIGHTxWIDTH, pixels as the robot delivers them; repeatable.")
    ] = None,
    try_it: Annotated[
        bool, typer.Option("--try", help="Compute one chunk of actions on blank pictures before saying it is done.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Import a pi0 or pi0.5 checkpoint: every tensor is accounted for, or nothing is imported."""
    from hotpolicy.launch.import_settings import Flags, load_settings
    from hotpolicy.launch.versions import open_store
    from hotpolicy.runtime.checkpoint.contradiction import FAMILY
    from hotpolicy.runtime.checkpoint.importer import Extras, import_checkpoint, read_checkpoint

    flags = Flags(
        horizon, steps, max_tokens, prompt, normalisation, relative, rate_hz, tuple(slot or ()), tuple(camera or ())
    )
    robot = load_settings(preset, settings, flags)
    checkpoint = read_checkpoint(path)
    rows: list[dict[str, Any]] = [row.to_dict() for row in checkpoint.rows]
    if not as_json:
        console.show([_grouped(row) for row in rows], COLUMNS, as_json)
    folder = out if out is not None else open_store(store).root / "versions"
    imported = import_checkpoint(checkpoint, folder, robot, Extras(stats, asset, tokenizer, floor, try_it))
    facts: dict[str, Any] = {
        "version": imported.bundle.id,
        "folder": str(imported.bundle.folder),
        "family": FAMILY[checkpoint.plan.pi05],
        "layout": checkpoint.source.layout,
        "certified": imported.certified,
        "remarks": imported.remarks if as_json else "; ".join(imported.remarks) or None,
    }
    console.show_one({**facts, "coverage": rows} if as_json else facts, as_json)


def _grouped(row: dict[str, Any]) -> dict[str, Any]:
    """Parameters with a comma between thousands; other zeros as dots, so that what is not zero is seen."""
    shown = {key: value or "·" for key, value in row.items()}
    return {**shown, "parameters": f"{row['parameters']:,}" if row["parameters"] else "·"}
