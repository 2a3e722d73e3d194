"""The report: exact keys, honest intervals, and a page that stands on its own."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hotpolicy.launch.play.charts import Curve, Latency
from hotpolicy.launch.play.report import Strip, rate_rows, write_report
from hotpolicy.launch.play.results import bars, check_results
from hotpolicy.launch.success import interval
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.versions.history import Change


def rate(successes: int, episodes: int) -> dict[str, int]:
    return {"successes": successes, "episodes": episodes}


def results() -> dict[str, Any]:
    return {
        "new_task": {"name": "hover over the COLOUR cube", "before": rate(0, 50), "after": rate(49, 50)},
        "hard_task": {
            "name": "touch the purple cube",
            "before": rate(3, 50),
            "after_head": rate(11, 50),
            "after_full": rate(48, 50),
            "full_tuning_seconds": 80.5,
        },
        "old_tasks": {
            "before": {"touch": rate(100, 100), "lift": rate(97, 100)},
            "after": {"touch": rate(100, 100), "lift": rate(93, 100)},
            "after_without_replay": {"touch": rate(61, 100), "lift": rate(0, 100)},
        },
        "tuning": {
            "strategy": "head-only",
            "seconds": 41.2,
            "steps": 400,
            "episodes": 24,
            "frames": 288,
            "demo_to_serving_s": 63.5,
        },
        "swap": {
            "stall_ms": 0.04,
            "p99_ms_before": 31.0,
            "p99_ms_during": 33.5,
            "sent": 4120,
            "answered": 4120,
            "failed": 0,
            "versions": ["aa11", "bb22"],
        },
        "onnx": {"max_abs_error": 3.1e-6, **rate(20, 20)},
        "wall_s": {"total": 421.0, "before": 60.0, "tuning": 41.2},
        "seed": 0,
        "machine": {"cpu": "test & <bench>", "cores": "2"},
    }


def strip(title: str, success: bool) -> Strip:
    generator = np.random.default_rng(0)
    frames = []
    for step in range(30):
        frame = np.full((64, 64, 3), (184, 184, 179), np.uint8)
        frame[30:40, 40:50] = (230, 20, 20)
        frame[20:26, 5 + step : 15 + step] = generator.integers(0, 60)
        frames.append(frame)
    return Strip(title, frames, success, rate_hz=10.0)


def write(folder: Path, data: dict[str, Any]) -> str:
    generator = np.random.default_rng(0)
    steps = np.arange(400)
    curve = Curve("hover, head-only", steps, 0.1 + np.exp(-steps / 60), steps[::20], 0.12 + np.exp(-steps[::20] / 55))
    full = Curve("purple, full", steps, 0.2 + 3 * np.exp(-steps / 30), steps[::20], 0.3 + 3 * np.exp(-steps[::20] / 33))
    latency = Latency(np.sort(generator.uniform(0, 60, 3000)), generator.gamma(9, 2.0, 3000), [(31.0, "bb22 live")])
    verdict = {"version": "bb22", "drift": 0.41, "latency_ms": 12.3456, "against": "aa11"}
    history = [
        Change("promote", "aa11", None, None, "demo", "2030-01-01T10:00:00Z", "r1", None).to_dict(),
        Change(
            "promote", "bb22", "aa11", "aa11", "<script>alert(1)</script>", "2030-01-01T10:01:00Z", "r2", verdict
        ).to_dict(),
    ]
    strips = [strip("hover over the red cube, before", False), strip("hover over the red cube, after", True)]
    page = write_report(folder, data, [curve, full], strips, latency, history)
    assert page == folder / "report.html"
    return page.read_text(encoding="utf-8")


class Resources(HTMLParser):
    """Collects whatever the page would fetch, and checks that tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data")]


def test_page_stands_on_its_own(tmp_path: Path) -> None:
    text = write(tmp_path, results())
    page = Resources()
    page.feed(text)
    assert all(address.startswith(("data:image/png", "#")) for address in page.fetched)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)", text)
    assert page.tags.count("svg") == 4  # success, two tuning runs, latency
    assert page.tags.count("img") == 20
    assert len(text) < 1_000_000


def test_page_shows_what_happened(tmp_path: Path) -> None:
    text = write(tmp_path, results())
    for expected in (
        "hover over the COLOUR cube",
        "98 %",
        "0.04 ms",
        "4120/4120",
        "bb22 live",
        "prefers-color-scheme",
    ):
        assert expected in text
    assert "✗" not in text
    assert "drift 0.41, latency ms 12.3" in text
    assert "&lt;script&gt;" in text
    assert "test &amp; &lt;bench&gt;" in text
    assert not re.search(r"#0[1-5]0[1-5]0[1-5]", text)  # every stand-in colour was exchanged


def test_json_holds_exactly_the_data(tmp_path: Path) -> None:
    write(tmp_path, results())
    assert json.loads((tmp_path / "report.json").read_text()) == results()


def test_quick_run_has_nulls(tmp_path: Path) -> None:
    data = results()
    data["hard_task"] = data["onnx"] = data["old_tasks"]["after_without_replay"] = None
    page = write_report(tmp_path, data)
    assert "purple" not in page.read_text()
    assert {bar.name for bar in bars(data) if not bar.met} == {"the whole run"}  # 421 s; a quick run has 180


def every_path(data: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(data, dict):
        return [path]
    return [path] * bool(path) + [found for key in data for found in every_path(data[key], (*path, key))]


FREE = {
    ("machine",),
    ("wall_s",),
    ("old_tasks", "before"),
    ("old_tasks", "after"),
    ("old_tasks", "after_without_replay"),
}
FIXED = [path for path in every_path(results()) if path[:-1] not in FREE or path == ("wall_s", "total")]


@pytest.mark.parametrize("path", FIXED, ids=".".join)
def test_missing_key_is_an_error_and_nothing_is_written(tmp_path: Path, path: tuple[str, ...]) -> None:
    data = results()
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    with pytest.raises(ConfigError, match=re.escape(f"report: {'.'.join(path)}: missing")):
        write_report(tmp_path / "out", data)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("swap.stall_ms", "fast", "swap.stall_ms: expected a finite number, got 'fast'"),
        ("swap.stall_ms", float("nan"), "swap.stall_ms: expected a finite number"),
        ("swap.sent", 1.5, "swap.sent: expected a whole number"),
        ("swap.versions", "aa11", "swap.versions: expected a list of texts"),
        ("new_task.after", {"successes": 51, "episodes": 50}, "new_task.after: expected 0 <= successes <= episodes"),
        ("new_task.after", {"successes": 0, "episodes": 0}, "new_task.after: expected 0 <= successes <= episodes"),
        ("new_task.after", None, "new_task.after: expected a mapping, got NoneType"),
        ("tuning.speed", 3, "tuning.speed: unknown key"),
        ("old_tasks.after", {"touch": rate(1, 2)}, "old_tasks.after: expected the tasks touch, lift"),
        ("seed", True, "seed: expected a whole number"),
    ],
)
def test_wrong_value_is_an_error(path: str, value: object, text: str) -> None:
    data = copy.deepcopy(results())
    *outer, last = path.split(".")
    inner = data
    for key in outer:
        inner = inner[key]
    inner[last] = value
    with pytest.raises(ConfigError, match=re.escape(text)):
        check_results(data)


def test_bars_miss_when_they_should() -> None:
    data = results()
    assert all(bar.met for bar in bars(data))
    data["swap"]["answered"] -= 1
    data["new_task"]["after"] = rate(47, 50)
    data["old_tasks"]["after"]["lift"] = rate(80, 100)
    missed = {bar.name for bar in bars(data) if not bar.met}
    assert missed == {"requests lost or failed", "new task after tuning", "old tasks, mean loss of success"}


def test_wilson_interval_against_known_values() -> None:
    assert interval(rate(0, 50)) == pytest.approx((0.0, 0.0713), abs=5e-4)
    assert interval(rate(49, 50)) == pytest.approx((0.8950, 0.9965), abs=5e-4)
    assert interval(rate(50, 100)) == pytest.approx((0.4038, 0.5962), abs=5e-4)


def test_every_rate_is_shown() -> None:
    assert len(rate_rows(results())) == 2 + 6 + 3 + 1


def test_frame_that_is_no_image(tmp_path: Path) -> None:
    bad = Strip("odd", [np.zeros((4, 4), np.uint8)], True, 10.0)
    with pytest.raises(ConfigError, match=r"strip 'odd': expected frames \(height, width, 3\) uint8, got \(4, 4\)"):
        write_report(tmp_path, results(), strips=[bad])
