"""`hotpolicy serve` with other runtimes' clients: what the command line, the file and the environment ask for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gr00t_client import Gr00tClient

from hotpolicy.launch.serving.fronts import GR00T_TOKEN, OPENPI_KEY, front_settings
from hotpolicy.launch.serving.options import serve_options
from hotpolicy.runtime.engine.echo_engine import seal_echo
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.store import Store

FILE = """
gr00t: { endpoint: "tcp://127.0.0.1:5570", keymap: gr00t_so100, kill: true, deadline_ms: 800 }
openpi: { port: 8001, connections: 3, keymap: openpi_droid, deadline_ms: 900 }
"""


def from_file(tmp_path: Path, text: str, **given: Any) -> Any:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    return serve_options(file, given).config


def test_nobody_asked(tmp_path: Path) -> None:
    assert front_settings({}) == {}
    config = from_file(tmp_path, "engine: echo")
    assert (config.gr00t, config.openpi) == (None, None)


def test_sections_of_the_file_and_the_command_line_over_them(tmp_path: Path) -> None:
    config = from_file(tmp_path, FILE)
    assert (config.gr00t.endpoint, config.gr00t.kill, config.gr00t.deadline_ms) == ("tcp://127.0.0.1:5570", True, 800)
    assert config.gr00t.keymap.name == "gr00t_so100"
    assert (config.openpi.port, config.openpi.connections, config.openpi.deadline_ms) == (8001, 3, 900)
    assert config.openpi.keymap.name == "openpi_droid"
    config = from_file(tmp_path, FILE, gr00t="ipc:///tmp/g", openpi=9000, keymaps=["openpi_libero"])
    assert (config.gr00t.endpoint, config.openpi.port) == ("ipc:///tmp/g", 9000)
    assert (config.gr00t.keymap.name, config.openpi.keymap.name) == ("gr00t_so100", "openpi_libero")


def test_secrets_come_from_the_environment() -> None:
    secrets = {GR00T_TOKEN: "one", OPENPI_KEY: "two"}
    found = front_settings({}, gr00t="tcp://127.0.0.1:5565", openpi=8000, environment=secrets)
    assert (found["gr00t"].token, found["openpi"].key) == ("one", "two")


@pytest.mark.parametrize(
    ("text", "given", "says"),
    [
        ("gr00t: { port: 1 }", {}, "gr00t: unknown port"),
        ("gr00t: { kill: 1 }", {}, "gr00t.kill: expected true or false"),
        ("gr00t: { deadline_ms: 0 }", {}, "gr00t.deadline_ms: expected a number above 0"),
        ("gr00t: { endpoint: 'tcp://0.0.0.0:1' }", {}, "gr00t: expected a loopback address"),
        ("openpi: { port: 70000 }", {}, "openpi: port: expected a number from 0 to 65535"),
        ("openpi: { host: a }", {}, "openpi: unknown host"),
        ("openpi: { keymap: gr00t_so100 }", {}, "openpi.keymap: expected one for openpi, gr00t_so100 is for gr00t"),
        ("engine: echo", {"gr00t_kill": True}, "gr00t_kill: expected --gr00t ENDPOINT with it"),
        ("engine: echo", {"keymaps": ["openpi_droid"]}, "keymap openpi_droid: it is for openpi, expected --openpi"),
        ("engine: echo", {"keymaps": ["none"]}, "keymap: expected a .json file or one of gr00t_libero"),
    ],
)
def test_what_is_wrong_is_named(text: str, given: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        from_file(tmp_path, text, **given)


def test_the_command_serves_them(tmp_path: Path) -> None:
    bundle = seal_echo(tmp_path / "made", 1.0)
    Store(tmp_path / "store").add(bundle.folder)
    command = [sys.executable, "-m", "hotpolicy.launch.cli", "serve", "--store", str(tmp_path / "store"), "--json"]
    command += ["--engine", "echo", "--endpoint", f"ipc://{tmp_path}/robots"]
    command += ["--gr00t", f"ipc://{tmp_path}/gr00t", "--gr00t-kill", "--openpi", "0"]
    environment = {**os.environ, GR00T_TOKEN: "secret"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["gr00t"] == f"ipc://{tmp_path}/gr00t"
        assert ready["openpi"] > 0
        with Gr00tClient(ready["gr00t"], token="secret") as client:
            assert client.call("ping", requires_input=False)["status"] == "ok"
            assert client.call("kill", requires_input=False) is None
        assert process.wait(20) == 0
