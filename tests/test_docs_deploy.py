"""docs/deploy.md and docs/scale.md are true: their commands exist with these options, tables are what the code says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main
from calling import call
from test_deployment import real

from hotpolicy.launch.cli import app
from hotpolicy.launch.deployment import FILES
from hotpolicy.runtime.versions.footprint import Need

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/deploy.md").read_text()
SCALE = (ROOT / "docs/scale.md").read_text()
BEFORE = re.compile(r"^(sudo (-u \w+ )?|ssh \w+ |torchrun --no-python --nproc-per-node \d+ )")


def commands(page: str) -> list[str]:
    """Every call of hotpolicy on the page, without what it is piped from, to or behind."""
    blocks = re.findall(r"^```(?:console|sh)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    inline = [" ".join(found.split()) for found in re.findall(r"`(hotpolicy [^`]+)`", page)]
    lines = [line for block in blocks for line in block.splitlines() if not line.startswith("#")]
    parts = [part.strip() for line in [*lines, *inline] for part in re.split(r"\||&&|>", line.removeprefix("$ "))]
    calls = [BEFORE.sub("", part).replace("/opt/hotpolicy/bin/hotpolicy ", "hotpolicy ", 1) for part in parts]
    return [part for part in calls if part.startswith("hotpolicy ")]


@pytest.mark.parametrize("line", sorted({*commands(PAGE), *commands(SCALE)}))
def test_command_exists(line: str) -> None:
    _, *words = shlex.split(line)
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words, f"{line}: a verb is missing"
        command = command.commands[words.pop(0)]
    command.make_context("hotpolicy", words)  # parses every option and argument, calls nothing


def test_the_way_is_whole() -> None:
    """From a demonstration to a service, nothing left out, and what was not run is said."""
    verbs = {line.split()[1] for line in commands(PAGE)}
    assert {"record", "finetune", "export", "serve", "run", "swap", "rollback", "deploy", "add", "status"} <= verbs
    assert "Nothing on this page was run on a Jetson" in PAGE


def test_the_round_is_whole() -> None:
    """From many robots' episodes to a version on each and back, and what is not there is said."""
    verbs = {line.split()[1] for line in commands(SCALE)}
    assert {"finetune", "dataset", "add", "swap", "run", "rollback", "status", "history", "provenance", "keys"} <= verbs
    assert "never ran on a GPU" in SCALE


def test_table_of_the_real_models() -> None:
    for family, name in (("pi0", "pi0"), ("pi05", "pi0.5")):
        found, need = real(family), Need.of(real(family))
        figures = [need.serve, need.swap_head, need.swap_all, need.tune_head]
        row = (
            f"| {name}, {found.parameters / 1e6:,.0f} M parameters | "
            + " | ".join(f"{gb:.1f}" for gb in figures)
            + " |"
        )
        assert row in PAGE


def test_list_of_files(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    listed = call(capsys, monkeypatch, "deploy", "show")[1].splitlines()
    assert "\n".join(line.rstrip() for line in listed) in PAGE
    assert set(re.findall(r"hotpolicy deploy show (\w+)", PAGE)) <= set(FILES)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE + SCALE):
        assert target.startswith("https://") or (ROOT / "docs" / target).exists()
    readme = (ROOT / "README.md").read_text()
    assert "docs/deploy.md" in readme
    assert "docs/scale.md" in readme
