"""A session's file: what it says, what the command line says over it, and what is wrong with it, by field and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotpolicy.launch.sessions.plan import SHIPPED, Gate, Keys, read_plan
from hotpolicy.runtime.errors import ConfigError

FILE = """\
folder: lessons
tasks: [hover over the red cube]
rounds: 3
promote: auto
tuning: { strategy: heads, steps: 20, fresh: 0.75 }
gate:
  trials: 0
keys: { back: z }
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(FILE)
    return path


def test_what_the_file_says(file: Path) -> None:
    plan = read_plan(file, {})
    assert (plan.folder, plan.tasks, plan.rounds, plan.promote) == (
        Path("lessons"), ("hover over the red cube",), 3, "auto",
    )  # fmt: skip
    assert (plan.tuning.strategy, plan.tuning.steps, plan.tuning.fresh, plan.tuning.carry) == ("heads", 20, 0.75, True)
    assert plan.gate == Gate(trials=0)
    assert plan.keys == Keys(back="z")
    assert (plan.robot, plan.episodes) == ("virtual_so101", 24)  # not in it


def test_options_go_over_the_file(file: Path) -> None:
    given = {
        "rounds": 5, "tasks": None, "promote": "ask", "tuning": {"steps": 7, "strategy": None}, "gate": {"trials": 3},
    }  # fmt: skip
    plan = read_plan(file, given)
    assert (plan.rounds, plan.promote, plan.tuning.steps, plan.gate.trials) == (5, "ask", 7, 3)
    assert (plan.tasks, plan.tuning.strategy) == (("hover over the red cube",), "heads")


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("", ["demonstrate"] * 3),
        ("collect: correct", ["correct"] * 3),
        ("collect: [demonstrate, correct]", ["demonstrate", "correct", "correct"]),
    ],
)
def test_what_is_collected_may_change_with_the_versions(file: Path, said: str, found: list[str]) -> None:
    file.write_text(f"{FILE}{said}\ntake_over: keyboard\n")
    plan = read_plan(file, {})
    assert [plan.collecting(taught) for taught in range(3)] == found
    assert read_plan(file, {"collect": ("correct",)}).collecting(0) == "correct"


def test_a_folder_needs_no_file() -> None:
    plan = read_plan(Path("lessons"), {"tasks": ("lift the cube",)})
    assert (plan.folder, plan.tasks, plan.promote) == (Path("lessons"), ("lift the cube",), "ask")


@pytest.mark.parametrize(
    ("before", "instead", "said"),
    [
        ("rounds: 3", "rounds: many", r"plan\.yaml: rounds: expected a whole number above 0, got 'many' \(line 3\)"),
        ("steps: 20", "steps: 0", r"plan\.yaml: tuning\.steps: expected a whole number .*, got 0 \(line 5\)"),
        ("trials: 0", "trials: -1", r"gate\.trials: expected .*\(line 7\)"),
        ("promote: auto", "promote: perhaps", r"promote: expected one of ask, auto, got 'perhaps' \(line 4\)"),
        ("rounds: 3", "round: 3", r"unknown round;"),
        ("strategy: heads", "strategi: heads", r"tuning: unknown strategi;"),
        (
            "tasks: [hover over the red cube]",
            "tasks: hover",
            r"tasks: expected a list of texts, got 'hover' \(line 2\)",
        ),
        ("tasks: [hover over the red cube]", "tasks: []", r"tasks: expected at least one instruction"),
        ("tasks: [hover over the red cube]\n", "", r"tasks: missing, expected a list of texts"),
        ("back: z", "back: q", r"keys: expected three of .*, got q m n"),
        ("back: z", "back: m", r"keys: expected three of .*, got m m n"),
        ("rounds: 3", "collect: correct", r"take_over: expected who corrects the policy"),
        ("rounds: 3", "collect: [demonstrate, correct]", r"take_over: expected who corrects the policy"),
        ("rounds: 3", "collect: teach", r"collect: expected one of demonstrate, correct, got 'teach' \(line 3\)"),
        ("rounds: 3", "collect: [correct, 1]", r"collect: expected a list of demonstrate, correct, got .*\(line 3\)"),
        ("rounds: 3", "collect: [teach]", r"collect: expected a list of demonstrate, correct, got .*\(line 3\)"),
        ("rounds: 3", "collect: []", r"collect: expected demonstrate or correct, or several in turn, got \[\]"),
        ("rounds: 3", "rounds: [3", r"plan\.yaml: line 4: "),
        ("fresh: 0.75", "replay_from: [nowhere]", r"tuning\.replay_from: expected a dataset folder, nowhere is none"),
    ],
)
def test_what_is_wrong_is_named(file: Path, before: str, instead: str, said: str) -> None:
    assert before in FILE
    file.write_text(FILE.replace(before, instead))
    with pytest.raises(ConfigError, match=said) as caught:
        read_plan(file, {})
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_lists_what_comes_along(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"so101_correct\.yaml, virtual_correct\.yaml, virtual_hover\.yaml; .*none\.yaml is none"
    ):
        read_plan(tmp_path / "none.yaml", {})


@pytest.mark.parametrize("shipped", sorted(path.name for path in SHIPPED.glob("*.yaml")))
def test_what_comes_along_is_right(shipped: str) -> None:
    plan = read_plan(Path(shipped), {})
    assert plan.tasks
    assert plan.folder == Path(plan.folder.name)  # in the current folder, not where the package is
