"""`hotpolicy export`: a policy version as ONNX graphs, with a certificate that they compute what torch computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotpolicy.launch import console
from hotpolicy.launch.options import STORE, AsJson, StoreFolder

if TYPE_CHECKING:
    from hotpolicy.runtime.bundle import Bundle
    from hotpolicy.runtime.messages import Observation

PRECISIONS = "fp32, fp16, int8, or int8-static, whose ranges are measured beforehand."


def export(
    version: Annotated[
        str,
        typer.Argument(help="Version id, a unique beginning of one, `live`, `previous`, or the folder of a bundle."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to make; it must not exist.")],
    precision: Annotated[str, typer.Option(help=PRECISIONS)] = "fp32",
    bound: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Largest difference from torch allowed, in normalised action units. "
            "Default: 0.0001 for fp32, 0.02 for fp16, 0.25 for int8.",
        ),
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="LeRobot dataset whose frames are compared too, and calibrate int8-static.")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="How many of them, spread over all.")] = 32,
    store: StoreFolder = STORE,
    as_json: AsJson = False,
) -> None:
    """Export a version to ONNX (prefix and head graphs) and compare it with torch; nothing is left if they differ."""
    from hotpolicy.launch.versions import open_store
    from hotpolicy.runtime.bundle import Bundle
    from hotpolicy.runtime.export import export as export_onnx

    folder = Path(version)
    chain = [Bundle.open(folder)] if folder.is_dir() else open_store(store).chain(version)
    recorded = observations(dataset, frames, chain) if dataset else []
    exported = export_onnx(chain, out, precision, bound, recorded)
    facts = {"version": exported.bundle.id, "folder": str(exported.folder), "keep": exported.content["keep"]}
    console.show_one({**facts, **exported.certificate}, as_json)


def observations(dataset: Path, count: int, chain: Sequence[Bundle]) -> list[Observation]:
    """`count` frames of a dataset, evenly over all its episodes, as the policy's robot would show them. Raises
    DatasetError, and BadRequest where they are not of that robot."""
    from hotpolicy.finetune.dataset import Dataset
    from hotpolicy.runtime.messages import Observation
    from hotpolicy.runtime.observed import check_observation
    from hotpolicy.runtime.transforms import Transforms

    opened, transforms, spec = Dataset.open(dataset), Transforms.of_chain(chain), chain[-1].manifest.spec
    images = transforms.images
    first, found = 0, []
    total = sum(info.length for info in opened.episodes)
    chosen = sorted({index * total // count for index in range(count)})
    for info in opened.episodes:
        mine = [place - first for place in chosen if first <= place < first + info.length]
        first += info.length
        if mine:
            episode = opened.episode(info.index)
            for place in mine:
                pictures = {name: frames[place] for name, frames in episode.images.items()}
                found.append(Observation(pictures, episode.state[place], episode.task))
    for one in found:
        check_observation(one, spec, images.size if images.resize == "pad" else None)
    return found
