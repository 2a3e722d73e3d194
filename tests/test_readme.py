"""Every example in the README is real: shell lines name verbs and options that exist, Python runs against a server."""

from __future__ import annotations

import re
import shlex
import tempfile
from pathlib import Path

import pytest
import typer.main

from hotpolicy.launch.cli import app
from hotpolicy.launch.profile_file import load_profile
from hotpolicy.launch.serving.options import serve_options
from hotpolicy.launch.serving.server import make_server
from hotpolicy.runtime.engine.echo_engine import seal_echo
from hotpolicy.runtime.store import Store

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("hotpolicy ")]


def test_there_are_examples() -> None:
    assert len(COMMANDS) >= 8
    assert blocks("python")


@pytest.mark.parametrize("line", COMMANDS)
def test_command_parses(line: str) -> None:
    _, verb, *arguments = shlex.split(line, comments=True)
    group = typer.main.get_command(app)
    command = group.commands[verb]  # type: ignore[attr-defined]
    command.make_context(verb, arguments)  # parses every option and argument, calls nothing


@pytest.mark.parametrize("example", blocks("python"))
def test_python_runs(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="hp") as folder:
        bundle = seal_echo(Path(folder) / "made", 1.0, spec=load_profile("virtual_so101").spec)
        Store(f"{folder}/store").add(bundle.folder)
        given = {"store": f"{folder}/store", "engine": "echo", "endpoint": f"ipc://{folder}/p"}
        with make_server(serve_options(None, given)) as server:
            server.wait_ready()
            exec(example.replace("tcp://127.0.0.1:5555", server.endpoint), {})
    assert bundle.id in capsys.readouterr().out


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z]+)", "".join(blocks("sh")), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists()


def test_architecture_names_files_that_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = [name for line in text.splitlines() for name in re.findall(r"`([a-z_/]+\.py)`", line)]
    everything = [str(path) for path in ROOT.glob("*/**/*.py")]
    missing = [name for name in named if not any(path.endswith(f"/{name}") for path in everything)]
    assert named
    assert not missing
