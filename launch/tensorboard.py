"""Events of a tuning run as TensorBoard reads them, written while it trains. The package is optional."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hotpolicy.runtime.errors import ConfigError, TuningError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Event = dict[str, Any]


def written(folder: Path, events: Iterator[Event]) -> Iterator[Event]:
    """The same events; each step's figures are on disk before the next one is asked for. A run that goes on writes
    another file beside the first. Raises ConfigError without the package, before anything is trained, and TuningError
    where the folder cannot be written."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("tensorboard: needs the package: pip install 'hotpolicy[tensorboard]'") from error
    try:
        writer = SummaryWriter(str(folder))
    except OSError as error:
        raise TuningError(f"{folder}: curves cannot be written: {error.strerror or error}") from error
    return _through(writer, events)


def _through(writer: SummaryWriter, events: Iterator[Event]) -> Iterator[Event]:
    stages: list[str] = []
    with writer:
        for event in events:
            if event["event"] == "step":
                _add(writer, event, stages)
                writer.flush()
            yield event


def _add(writer: SummaryWriter, event: Event, stages: list[str]) -> None:
    """`stages` are those seen so far: a curve can hold their number only, so each is told by name where it begins."""
    step, stage = event["step"], event["stage"]
    if stage not in stages:
        stages.append(stage)
        writer.add_text("stage", stage, step)
    scalars = {"stage": len(stages), "rate": event["rate"], "train/loss": event["loss"], "gradient": event["gradient"]}
    scalars |= _held_out(event["held_out"] or {})
    for name, value in scalars.items():
        if value is not None:
            writer.add_scalar(name, value, step)


def _held_out(evaluation: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"held-out {figure}/{side}: {task}": values[figure]
        for side in ("new", "old")
        for task, values in evaluation.get(side, {}).items()
        for figure in ("loss", "error_deg")
    }
