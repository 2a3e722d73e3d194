"""Charts as inline SVG that takes its colours from the page, so one report reads well by day and by night."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

# matplotlib cannot write CSS variables, so it draws in these colours and they are exchanged in the finished SVG.
INK, FAINT, BEFORE, AFTER, MARK = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    BEFORE: "var(--before)",
    AFTER: "var(--after)",
    MARK: "var(--mark)",
}
_BINS = 400  # points across the latency chart


@dataclass(frozen=True, slots=True)
class Curve:
    """The losses of one tuning run."""

    name: str
    steps: Sequence[float]  # of the training losses
    train: Sequence[float]
    held_out_steps: Sequence[float]
    held_out: Sequence[float]


@dataclass(frozen=True, slots=True)
class Latency:
    """Round trips of one or more clients over the run."""

    at_s: Sequence[float]  # since the start of the measurement
    ms: Sequence[float]
    swaps: Sequence[tuple[float, str]]  # (s since the same start, label)


@dataclass(frozen=True, slots=True)
class RateRow:
    """A success rate with its interval, all in 0..1."""

    label: str
    group: str  # "before" or "after": decides the colour
    value: float
    low: float
    high: float
    counts: str  # e.g. "49/50"


def rates_svg(rows: Sequence[RateRow]) -> str:
    figure, axes = _axes(height=0.55 + 0.27 * len(rows))
    for place, row in enumerate(rows):
        colour = BEFORE if row.group == "before" else AFTER
        axes.plot([row.low, row.high], [place, place], color=colour, linewidth=2, solid_capstyle="round")
        axes.plot([row.value], [place], "o", color=colour, markersize=6)
        axes.annotate(row.counts, (1.03, place), color=INK, va="center", fontsize=9, annotation_clip=False)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.1)
    axes.set_xticks(np.linspace(0, 1, 6), [f"{tick:.0f} %" for tick in np.linspace(0, 100, 6)])
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return _svg(figure, "rates")


def curve_svg(curve: Curve, salt: str) -> str:
    figure, axes = _axes(width=4.6, height=2.4)
    axes.plot(curve.steps, curve.train, color=BEFORE, linewidth=1.2, label="training")
    axes.plot(curve.held_out_steps, curve.held_out, color=AFTER, linewidth=1.8, label="held out")
    positive = [loss for loss in (*curve.train, *curve.held_out) if loss > 0]
    if positive and max(positive) > 10 * min(positive):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.set_xlabel("step")
    axes.set_ylabel("flow loss")
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.legend(frameon=False, labelcolor=INK)
    return _svg(figure, salt)


def latency_svg(latency: Latency) -> str:
    """Median and slowest of each moment; thousands of single points would hide both. Quiet times are left open."""
    at, ms = np.asarray(latency.at_s, float), np.asarray(latency.ms, float)
    figure, axes = _axes(height=2.6)
    if len(at):
        edges = np.linspace(at.min(), at.max() + 1e-9, min(_BINS, max(2, len(at))) + 1)
        which = np.digitize(at, edges) - 1
        median, slowest = np.full((2, len(edges) - 1), np.nan)
        for index in np.unique(which):
            median[index], slowest[index] = np.median(ms[which == index]), ms[which == index].max()
        middle = (edges[:-1] + edges[1:]) / 2
        # The small dots show moments that stand alone between two quiet ones.
        axes.plot(middle, slowest, ".-", color=BEFORE, linewidth=1, markersize=2, label="slowest")
        axes.plot(middle, median, ".-", color=AFTER, linewidth=1.6, markersize=2, label="median")
        axes.set_ylim(0, np.nanmax(slowest) * 1.3)
        axes.legend(frameon=False, labelcolor=INK, loc="upper left", ncols=2)
    _mark(axes, latency.swaps)
    axes.set_xlabel("s")
    axes.set_ylabel("round trip, ms")
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    return _svg(figure, "latency")


def _mark(axes: Any, swaps: Sequence[tuple[float, str]]) -> None:
    """A line and a label for each; labels that would meet go one line up, and end at the line near the right edge."""
    low, high = axes.get_xlim()
    last, level = low - high, 0
    for at_s, label in sorted(swaps):
        level = level + 1 if at_s - last < 0.16 * (high - low) else 0
        last = at_s
        right = at_s < low + 0.85 * (high - low)
        axes.axvline(at_s, color=MARK, linewidth=1.2)
        axes.annotate(label, (at_s, 1.02 + 0.1 * level), xycoords=("data", "axes fraction"), color=MARK, fontsize=9,
                      ha="left" if right else "right", annotation_clip=False)  # fmt: skip


def _axes(width: float = 9.4, height: float = 2.4) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(FAINT)
    axes.tick_params(which="both", colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return figure, axes


def _svg(figure: Figure, salt: str) -> str:
    """The <svg> element alone. The salt keeps ids of several charts on one page apart."""
    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif", "font.size": 10}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text.replace("xmlns:xlink", 'role="img" xmlns:xlink', 1)
