"""The curves of a version: in the terminal, and as a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_tuning_process import events, place, tuning  # noqa: F401  a fixture
from tuning_parts import NEW, OLD
from typer.testing import CliRunner

from hotpolicy.launch.cli import app
from hotpolicy.launch.curves import draw, held_out, sparkline
from hotpolicy.runtime.errors import ConfigError

FOUND = {
    "train": [[5, 1.0], [10, 0.5]],
    "held_out": [
        {"step": 0, "new": {"wave": {"loss": 1.0}}, "old": {"stay": {"loss": 0.1}}},
        {"step": 10, "new": {"wave": {"loss": 0.4}}, "old": {"stay": {"loss": 0.2}}},
    ],
}
PROVENANCE = {"curves": FOUND, "weights_of_step": 10}


def test_a_line_of_bars_goes_from_the_largest_to_the_smallest() -> None:
    assert sparkline([3.0, 2.0, 1.0]) == "█▅▁"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert len(sparkline(list(range(1000)), width=16)) == 16
    assert sparkline(list(range(1000)), width=16)[-1] == "█"


def test_held_out_losses_by_task_new_ones_first() -> None:
    assert held_out(FOUND) == {"wave (new)": [(0, 1.0), (10, 0.4)], "stay (old)": [(0, 0.1), (10, 0.2)]}


@pytest.mark.parametrize(("name", "begins"), [("c.png", b"\x89PNG"), ("c.svg", b"<?xml"), ("c.pdf", b"%PDF")])
def test_the_picture_is_of_the_kind_its_name_says(tmp_path: Path, name: str, begins: bytes) -> None:
    draw(PROVENANCE, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)


@pytest.mark.parametrize("name", ["c.txt", "missing/c.png"])
def test_a_picture_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="out: "):
        draw(PROVENANCE, tmp_path / name)


def test_a_tuned_version_shows_how_it_was_tuned(place: Path) -> None:  # noqa: F811
    with tuning(place, "--steps", "6", "--no-gate") as child:
        assert child.wait(timeout_s=60) == 0, child.last_words()
    folder, picture = str(events(child)[-1]["folder"]), place / "curves.png"
    result = CliRunner().invoke(app, ["curves", folder, "--out", str(picture)])
    assert result.exit_code == 0, result.output
    for text in ("expert, 6 steps, weights of step 6", "training loss", f"{NEW} (new)", f"{OLD} (old)"):
        assert text in " ".join(result.output.split())
    assert picture.exists()
    untuned = CliRunner().invoke(app, ["curves", "live", "--store", str(place / "store")])
    assert isinstance(untuned.exception, ConfigError)
    assert "was not tuned here" in str(untuned.exception)
