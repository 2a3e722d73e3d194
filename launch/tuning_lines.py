"""The events of a tuning run as a person reads them: a bar, a few lines, and the figures in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hotpolicy.launch.curves import sparkline

Event = dict[str, Any]


def draw(events: Iterator[Event]) -> Iterator[Event]:
    """The same events, with a progress bar and a few lines on the terminal."""
    from rich.progress import Progress

    with Progress(transient=True) as bars:
        bar, losses = bars.add_task("tuning", total=None), []
        for event in events:
            match event["event"]:
                case "begin":
                    bars.console.print(
                        f"{event['episodes']} episodes, {event['frames']} frames, "
                        f"{event['held_out_episodes']} episodes held out; from {event['base']}"
                    )
                case "advice":
                    for line in event["lines"]:
                        bars.console.print(line, highlight=False)
                case "plan":
                    mb, step = event["bytes"]["total"] / 1e6, event["step_s"]
                    words = "" if event["fits"] else ": does not fit"
                    bars.console.print(
                        f"{event['strategy']}: about {mb:.0f} MB, {step:.2f} s a step{words}", highlight=False
                    )
                case "resumed":
                    bars.console.print(f"goes on after step {event['step']}, where an earlier run was ended")
                case "step":
                    if event["loss"] is not None:
                        losses.append(event["loss"])
                    loss = f"{sparkline(losses, 16)} loss {losses[-1]:.3f}" if losses else ""
                    bars.update(bar, total=event["steps"], completed=event["step"], description=f"tuning  {loss}")
                    if event["held_out"]:
                        bars.console.print(held_out_line(event), highlight=False)
                    if event["note"]:
                        bars.console.print(f"note: {event['note']}")
                case "trial":
                    bars.console.print(f"{event['task']}: {event['successes']}/{event['episodes']}", highlight=False)
                case "sealed":
                    word = {True: "passed the gate", False: "refused by the gate", None: "sealed, not judged"}
                    bars.console.print(f"{event['version']}: {word[event['passed']]}; {event['folder']}")
            yield event


def held_out_line(event: Event) -> str:
    """Held-out figures of one evaluation, the mean over tasks."""
    parts = []
    for side, figures in event["held_out"].items():
        if isinstance(figures, dict) and figures:
            loss, error = mean_over_tasks(figures, "loss"), mean_over_tasks(figures, "error_deg")
            parts.append(f"{side} tasks: held-out loss {loss:.3f}, action error {error:.2f} deg")
    return f"step {event['step']:>4}  " + "; ".join(parts)


def mean_over_tasks(figures: Mapping[str, Mapping[str, float]], name: str) -> float:
    """Of one held-out figure; every task counts the same. `figures` holds at least one task."""
    return sum(of[name] for of in figures.values()) / len(figures)
