"""What openpi's PyTorch folder says: the horizon in config.json, statistics under assets/ where they were copied."""

from __future__ import annotations

from pathlib import Path

from hotpolicy.runtime.checkpoint.layout import Source
from hotpolicy.runtime.checkpoint.settings import Stated, Trained
from hotpolicy.runtime.errors import BundleError

STATS = "norm_stats.json"


def read_config(source: Source) -> Stated:
    """Raises BundleError when the horizon is not a number of actions."""
    if not source.config:
        return Stated(source=str(source.weights))
    horizon = source.config["action_horizon"]
    if type(horizon) is not int or horizon < 1:
        raise BundleError(f"{source.folder / 'config.json'}: action_horizon: expected above 0, got {horizon!r}")
    return Stated(source=f"{source.folder / 'config.json'}", trained=Trained(horizon=horizon))


def find_stats(folder: Path, asset: str | None) -> Path:
    """assets/<asset>/norm_stats.json. Raises BundleError when there is none, or several and `asset` names none."""
    found = {str(file.parent.relative_to(folder / "assets")): file for file in (folder / "assets").rglob(STATS)}
    if asset is not None:
        if asset not in found:
            raise BundleError(
                f"{folder}: assets/{asset}/{STATS}: missing; there are: {', '.join(sorted(found)) or '-'}"
            )
        return found[asset]
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise BundleError(f"{folder}: assets of several robots: {', '.join(sorted(found))}; choose with --asset")
    raise BundleError(
        f"{folder}: no assets/<robot>/{STATS}: the converter rarely copies it; give --stats FILE, from the original "
        "checkpoint's assets folder"
    )
