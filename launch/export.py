"""`hotpolicy export`: a policy version as ONNX graphs, with a certificate that they compute what torch computes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hotpolicy.launch import console
from hotpolicy.launch.options import STORE, AsJson, StoreFolder


def export(
    version: Annotated[str, typer.Argument(help="Version id, a unique beginning of one, `live` or `previous`.")],
    out: Annotated[Path, typer.Argument(help="Folder to make; it must not exist.")],
    store: StoreFolder = STORE,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Largest difference from torch allowed, in normalised action units.")
    ] = 1e-4,
    as_json: AsJson = False,
) -> None:
    """Export a version to ONNX (prefix and head graphs) and compare it with torch; nothing is left if they differ."""
    from hotpolicy.launch.versions import open_store
    from hotpolicy.runtime.export import export as export_onnx

    exported = export_onnx(open_store(store).chain(version), out, tolerance)
    console.show_one({"version": exported.bundle.id, "folder": str(exported.folder), **exported.certificate}, as_json)
