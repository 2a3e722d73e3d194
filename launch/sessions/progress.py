"""Success over time in a session: a line for each round, and a plot of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from hotpolicy.launch.sessions.state import Round
from hotpolicy.launch.success import interval

PLOT = "session.png"
STYLES = {"live": "green", "refused": "red", "not live": "red", "left": "yellow", "passed": "cyan"}


def show_round(entry: Round) -> None:
    """One line on standard output."""
    Console(soft_wrap=True, highlight=False).print(round_line(entry))


def round_line(entry: Round) -> Text:
    word = "rolled back" if entry.rolled_back else entry.outcome
    line = Text(f"round {entry.number:>2}  {entry.version[:12]}  ")
    line.append(f"{word:<11}", style=STYLES["not live" if entry.rolled_back else entry.outcome])
    line.append(f"  {success(entry):<24}")
    if entry.error is not None and entry.error_before is not None:
        line.append(f"  held-out error {entry.error_before:.2f} -> {entry.error:.2f} deg")
    if entry.episodes:
        line.append(f"  {entry.episodes} demonstrations")
    if entry.reasons:
        line.append(f"  {'; '.join(entry.reasons)}")
    return line


def success(entry: Round) -> str:
    """Wins of tries, the rate, and its 95 % Wilson interval."""
    if not entry.tries:
        return "not tried"
    low, high = interval({"successes": entry.wins, "episodes": entry.tries})
    return f"{entry.wins}/{entry.tries} {entry.wins / entry.tries:.2f} [{low:.2f}, {high:.2f}]"


def save_plot(folder: Path, rounds: Sequence[Round]) -> Path:
    """`session.png`: success of every version that was tried, and held-out error of every candidate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    tried = [entry for entry in rounds if entry.tries]
    rates = [entry.wins / entry.tries for entry in tried]
    ends = [interval({"successes": entry.wins, "episodes": entry.tries}) for entry in tried]
    spans = [
        [rate - low for rate, (low, _) in zip(rates, ends, strict=True)],
        [high - rate for rate, (_, high) in zip(rates, ends, strict=True)],
    ]
    above.errorbar([entry.number for entry in tried], rates, spans, fmt="o-", capsize=4, color="tab:blue")
    for entry, rate in zip(tried, rates, strict=True):
        words = f"{entry.wins}/{entry.tries}{' rolled back' if entry.rolled_back else ''}"
        above.annotate(words, (entry.number, rate), xytext=(6, -12), textcoords="offset points", fontsize=8)
    above.set_ylim(-0.05, 1.05)
    above.set_ylabel("success, 95 % interval")
    judged = [entry for entry in rounds if entry.error is not None]
    errors = [entry.error for entry in judged if entry.error is not None]
    below.plot([entry.number for entry in judged], errors, "o-", color="tab:orange", label="candidate")
    refused = [(entry.number, entry.error) for entry in judged if entry.outcome in ("refused", "not live", "left")]
    for number, error in refused:
        below.plot([number], [error], "x", color="tab:red", markersize=11)
    below.set_ylabel("held-out action error, deg\n(crosses: did not go live)")
    below.set_xlabel("round")
    below.set_xticks([entry.number for entry in rounds])
    for axes in (above, below):
        axes.grid(alpha=0.3)
    path = folder / PLOT
    fresh = folder / f".{PLOT}.tmp.png"
    figure.savefig(fresh, dpi=110)
    fresh.replace(path)
    return path
