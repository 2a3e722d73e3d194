"""`hotpolicy curves`: how a version was trained, from its own provenance: the losses, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotpolicy.launch.options import STORE, StoreFolder
from hotpolicy.runtime.errors import ConfigError

if TYPE_CHECKING:
    from hotpolicy.runtime.bundle import Bundle

BARS = "▁▂▃▄▅▆▇█"
KINDS = (".png", ".svg", ".pdf")


def curves(
    version: Annotated[str, typer.Argument(help="A version's id, or a sealed candidate's folder.")] = "live",
    store: StoreFolder = STORE,
    out: Annotated[Path | None, typer.Option(help="Write the curves to this .png, .svg or .pdf.")] = None,
) -> None:
    """Show the training and held-out losses of a tuned version, and which step's weights it has."""
    bundle = _open(version, store)
    provenance = bundle.manifest.provenance
    if "curves" not in provenance:
        raise ConfigError(f"{bundle.id}: was not tuned here: its provenance has no curves")
    from rich.console import Console

    console = Console()
    console.print(f"{bundle.id}: {provenance['strategy']}, {provenance['steps']} steps, weights of step "
                  f"{provenance['weights_of_step']} ({provenance['chosen_by']})", highlight=False)  # fmt: skip
    losses = [loss for _, loss in provenance["curves"]["train"]]
    console.print(f"training loss {losses[0]:.3f} {sparkline(losses)} {losses[-1]:.3f}", highlight=False)
    for name, points in held_out(provenance["curves"]).items():
        values = [loss for _, loss in points]
        console.print(f"{name}: {values[0]:.3f} {sparkline(values)} {values[-1]:.3f}", highlight=False, markup=False)
    if out is not None:
        draw(provenance, out)
        console.print(f"{out} written", highlight=False)


def held_out(found: Mapping[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """Task -> (step, held-out loss), new tasks first; from the curves of a provenance."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for side in ("new", "old"):
        for at in found["held_out"]:
            for task, figures in at[side].items():
                lines.setdefault(f"{task} ({side})", []).append((at["step"], figures["loss"]))
    return lines


def sparkline(values: Sequence[float], width: int = 32) -> str:
    """A line of bars, at most `width`: each is the mean of a stretch, the tallest the largest."""
    stretch = max(1, -(-len(values) // width))
    parts = [values[start : start + stretch] for start in range(0, len(values), stretch)]
    means = [sum(part) / len(part) for part in parts]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def draw(provenance: Mapping[str, Any], path: Path) -> None:
    """Raises ConfigError for another kind of file, or one that cannot be written."""
    if path.suffix not in KINDS:
        raise ConfigError(f"out: expected a file that ends in {', '.join(KINDS)}, got {path.name!r}")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    steps, losses = zip(*provenance["curves"]["train"], strict=True)
    axes.plot(steps, losses, color="0.6", linewidth=1, label="training")
    for name, points in held_out(provenance["curves"]).items():
        at, values = zip(*points, strict=True)
        axes.plot(at, values, "o-" if name.endswith("(new)") else "s--", markersize=4, label=name)
    axes.axvline(provenance["weights_of_step"], color="0.3", linestyle=":", label="the step that was kept")
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("flow loss")
    axes.legend(frameon=False, fontsize=8)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ConfigError(f"out: {path} cannot be written: {error.strerror}") from error


def _open(version: str, store: Path) -> Bundle:
    from hotpolicy.launch.versions import open_store
    from hotpolicy.runtime.bundle import Bundle

    if Path(version).is_dir():
        return Bundle.open(version)
    opened = open_store(store)
    return opened.open(opened.live() if version == "live" else version)
