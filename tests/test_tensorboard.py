"""What TensorBoard shows of a run is what the run said of itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_tuning_process import place, tuning  # noqa: F401  a fixture

from hotpolicy.launch.tensorboard import written
from hotpolicy.runtime.errors import ConfigError, TuningError


def test_the_curves_of_a_run_are_read_back(place: Path) -> None:  # noqa: F811
    folder = place / "board"
    with tuning(
        place, "--steps", "10", "--strategy", "progressive", "--no-gate", "--tensorboard", str(folder)
    ) as child:
        assert child.wait(timeout_s=60) == 0, child.last_words()
    steps = [event for line in child.lines if (event := json.loads(line))["event"] == "step"]
    board = EventAccumulator(str(folder))
    board.Reload()

    def curve(name: str) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in board.Scalars(name)]

    for name, key in (("train/loss", "loss"), ("rate", "rate"), ("gradient", "gradient")):
        said = [(event["step"], event[key]) for event in steps if event[key] is not None]
        assert curve(name) == [(step, pytest.approx(value, rel=1e-6)) for step, value in said], name
    assert all(value > 0 for _, value in curve("gradient"))
    assert len(curve("gradient")) == len(steps) - 1  # all but the parent's
    stages = list(dict.fromkeys(event["stage"] for event in steps))
    assert curve("stage") == [(event["step"], stages.index(event["stage"]) + 1) for event in steps]
    for side, task in (("new", "wave once"), ("old", "stay there")):
        for figure in ("loss", "error_deg"):
            said = [(e["step"], e["held_out"][side][task][figure]) for e in steps if e["held_out"]]
            assert len(said) > 1
            assert curve(f"held-out {figure}/{side}: {task}") == [
                (step, pytest.approx(v, rel=1e-6)) for step, v in said
            ]


def test_without_the_package_it_names_the_extra_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'hotpolicy\[tensorboard\]'"):
        written(tmp_path, iter([]))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TuningError, match="board: curves cannot be written"):
        written(tmp_path / "file" / "board", iter([]))
