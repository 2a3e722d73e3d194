"""The report of a run: report.json for machines, and report.html, one file that needs nothing from anywhere."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hotpolicy.launch.play.charts import Curve, Latency, RateRow, curve_svg, latency_svg, rates_svg
from hotpolicy.launch.play.results import Results, bars, check_results
from hotpolicy.launch.success import interval, rate
from hotpolicy.runtime.errors import ConfigError

_TEMPLATES = Path(__file__).parent / "templates"
_SHOWN = 10  # pictures per film strip
_COLUMNS = ("at", "action", "version", "before", "by", "verdict")  # of a change in the store's history


@dataclass(frozen=True, slots=True)
class Strip:
    """One episode as the camera saw it."""

    title: str  # e.g. "hover over the red cube, before"
    frames: Sequence[np.ndarray]  # each (height, width, 3) uint8 RGB
    success: bool
    rate_hz: float  # frames per second


def write_report(
    folder: Path | str,
    data: Results,
    curves: Sequence[Curve] = (),
    strips: Sequence[Strip] = (),
    latency: Latency | None = None,
    history: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write report.json and report.html into `folder` and return the path of the page.

    `data` has exactly the keys of `results.SCHEMA`; `history` is what the store keeps, oldest first.
    Raises ConfigError when a key is missing, unknown or of the wrong kind, or a frame is not an image.
    """
    check_results(data)
    page = _page(data, curves, strips, latency, history)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(page, encoding="utf-8")
    return folder / "report.html"


def _page(
    data: Results,
    curves: Sequence[Curve],
    strips: Sequence[Strip],
    latency: Latency | None,
    history: Sequence[Mapping[str, Any]],
) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["cell"] = _cell
    environment.filters["percent"] = lambda value: f"{100 * value:.0f} %"
    rows = rate_rows(data)
    return environment.get_template("report.html").render(
        data=data,
        bars=bars(data),
        rows=rows,
        rates_chart=rates_svg(rows),
        curves=[(curve.name, curve_svg(curve, f"curve{index}")) for index, curve in enumerate(curves)],
        latency_chart=latency_svg(latency) if latency else None,
        strips=[(strip, _pictures(strip)) for strip in strips],
        columns=[column for column in _COLUMNS if any(column in entry for entry in history)],
        history=[{**entry, "at": str(entry.get("at", ""))[:19].replace("T", " ")} for entry in history],
    )


def rate_rows(data: Results) -> list[RateRow]:
    """Every success rate of the run in the order of the story."""
    new, old, hard, onnx = data["new_task"], data["old_tasks"], data["hard_task"], data["onnx"]
    found = [(f"{new['name']}: before", "before", new["before"]), (f"{new['name']}: after", "after", new["after"])]
    for task in old["before"]:
        found += [(f"{task}: before", "before", old["before"][task]), (f"{task}: after", "after", old["after"][task])]
        if without := old["after_without_replay"]:
            found += [(f"{task}: after, without replay", "before", without[task])]
    if hard:
        found += [(f"{hard['name']}: before", "before", hard["before"])]
        found += [(f"{hard['name']}: head only", "before", hard["after_head"])]
        found += [(f"{hard['name']}: full", "after", hard["after_full"])]
    if onnx:
        found += [(f"{new['name']}: after, served by ONNX Runtime", "after", onnx)]
    return [
        RateRow(label, group, rate(result), *interval(result), f"{result['successes']}/{result['episodes']}")
        for label, group, result in found
    ]


def _cell(value: object) -> str:
    """A verdict is a mapping: of it the numbers are shown."""
    if isinstance(value, Mapping):
        numbers = {key: inner for key, inner in value.items() if isinstance(inner, (int, float))}
        return ", ".join(f"{key.replace('_', ' ')} {inner:.3g}" for key, inner in numbers.items())
    return "" if value is None else str(value)


def _pictures(strip: Strip) -> list[tuple[str, str]]:
    """(time, PNG as a data URI) of some frames, first and last always among them."""
    from PIL import Image

    count = len(strip.frames)
    chosen = np.unique(np.linspace(0, max(0, count - 1), min(_SHOWN, count)).round().astype(int))
    pictures = []
    for index in chosen:
        frame = np.asarray(strip.frames[index])
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            got = f"{frame.shape} {frame.dtype}"
            raise ConfigError(f"report: strip {strip.title!r}: expected frames (height, width, 3) uint8, got {got}")
        out = io.BytesIO()
        Image.fromarray(frame).save(out, format="PNG", optimize=True)
        uri = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
        pictures.append((f"{index / strip.rate_hz:.1f} s", uri))
    return pictures
