"""The command line: help without torch, one-line errors with exit code 2, and a real server steered from outside."""

from __future__ import annotations

import inspect
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tuning_parts
import typer.main
from calling import call
from typer.testing import CliRunner

from hotpolicy.launch import cli
from hotpolicy.launch.nano import SHIPPED
from hotpolicy.launch.serving.options import serve_options
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.engine.echo_engine import seal_echo
from hotpolicy.runtime.errors import ConfigError

ROOT = Path(__file__).parent.parent
VERBS = sorted(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]
COMMAND = [sys.executable, "-c", "from hotpolicy.launch.cli import main; main()"]


def hotpolicy(*arguments: object, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)


def test_help_names_every_verb_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from hotpolicy.launch.cli import app; from typer.testing import CliRunner;"
        "print(CliRunner().invoke(app, ['--help']).output);"
        "heavy = {'torch', 'numpy', 'scipy', 'mujoco', 'onnxruntime', 'pyarrow', 'matplotlib'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for verb in VERBS:
        assert f" {verb} " in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb(verb: str) -> None:
    result = CliRunner().invoke(cli.app, [verb, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "Usage:" in result.output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["serve", "--engine", "tpu", "--store", "{tmp}/new"], "engine: expected one of torch, onnx, echo, got 'tpu'"),
        (["serve", "--engine", "echo", "--store", "{tmp}/new"], "add a full bundle first"),
        (["serve", "--engine", "echo", "--store", "{tmp}/file"], "store: expected a folder"),
        (["serve", "--endpoint", "tcp://0.0.0.0:5555", "--store", "{tmp}/new"], "endpoint: expected"),
        (["serve", "--threads", "0", "--store", "{tmp}/new"], "threads: expected a number from 1 to 256, got 0"),
        (["serve", "--config", "{tmp}/none.yaml"], "none.yaml: cannot be read"),
        (["add", "{tmp}", "--store", "{tmp}/new"], "manifest.json"),
        (["status", "--control", "nonsense"], "endpoint: expected tcp://HOST:PORT or ipc://PATH"),
        (["status", "--control", "ipc://{tmp}/nobody"], "no server there before the deadline"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    text: str,
) -> None:
    (tmp_path / "file").write_text("not a folder")
    code, out, err = call(capsys, monkeypatch, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("hotpolicy: ")
    assert text in err
    assert err.count("\n") == 1


def test_unexpected_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_missing_package_names_the_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def needs_torch() -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(cli, "app", needs_torch)
    assert call(capsys, monkeypatch) == (2, "", "hotpolicy: this needs torch: pip install 'hotpolicy[server]'\n")


def test_command_line_wins_over_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("store: from-file\nengine: onnx\nmax_batch: 2\nendpoint: tcp://127.0.0.1:6000\n")
    options = serve_options(file, {"engine": "echo"})
    assert (options.engine, str(options.store), options.config.max_batch) == ("echo", "from-file", 2)
    assert options.config.control == "tcp://127.0.0.1:6001"
    file.write_text("max_batches: 2\n")
    with pytest.raises(ConfigError, match="unknown max_batches"):
        serve_options(file, {})


def test_shipped_policy_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = call(capsys, monkeypatch, "add", "nano", "--store", tmp_path / "store")
    assert code == 0
    assert (tmp_path / "store/versions" / out.strip()).is_dir()


class Served:
    """A server in its own process, with two echo versions in its store."""

    def __init__(self, folder: Path):
        self.store, self.endpoint, self.control = folder / "store", f"ipc://{folder}/p", f"ipc://{folder}/p.control"
        first: Bundle = seal_echo(folder / "made", 1.0)
        second = seal_echo(folder / "made", 2.0, parent=first)
        self.first, self.second = first.id, second.id
        for bundle in (first, second):
            assert hotpolicy("add", bundle.folder, "--store", self.store).stdout.strip() == bundle.id
        self.command = [*COMMAND, "serve", "--engine", "echo", "--store", str(self.store), "--endpoint", self.endpoint]
        self.process = subprocess.Popen([*self.command, "--json"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.ready: dict[str, Any] = json.loads(self.process.stdout.readline())


@pytest.fixture
def served() -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="hp") as folder:
        server = Served(Path(folder))
        yield server
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait(10)
        assert server.process.stdout is not None
        server.process.stdout.close()


def test_server_steered_from_outside(
    served: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*arguments: str) -> tuple[int, str, str]:
        return call(capsys, monkeypatch, *arguments, "--control", served.control)

    assert served.ready["ready"] == served.first
    assert served.ready["control"] == served.control
    listed = json.loads(ask("versions", "--json")[1])
    assert {(row["id"], row["role"]) for row in listed} == {(served.first, "live"), (served.second, None)}
    assert served.second in ask("versions")[1]

    code, out, err = ask("swap", "no-such-version")
    assert (code, out) == (2, "")
    assert "no version 'no-such-version'" in err

    code, out, _ = ask("swap", served.second[:6])
    assert code == 0
    assert out.startswith(f"{served.second} is live (was {served.first})")
    assert ask("swap", served.second)[1] == f"{served.second} is live already\n"
    assert json.loads(ask("status", "--json")[1])["previous"] == served.first

    again = [json.loads(ask("rollback", "--request-id", "once", "--json")[1]) for _ in range(2)]
    assert [reply["version"] for reply in again] == [served.first, served.first]  # the second changed nothing
    changes = json.loads(ask("history", "--json")[1])
    assert [change["action"] for change in changes][-2:] == ["promote", "rollback"]
    assert "rollback" in ask("history")[1]

    second = subprocess.run(served.command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert second.returncode == 2
    assert second.stderr.splitlines()[-1].startswith("hotpolicy: endpoint: ")
    assert "ready" in ask("status")[1]  # the first one goes on

    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(20) == 0


@pytest.mark.parametrize(
    ("engine", "name", "owner"),
    [
        ("onnx", "dtype", "torch"),
        ("echo", "device", "torch"),
        ("torch", "provider", "onnx"),
        ("torch", "cache", "onnx"),
    ],
)
def test_an_option_of_another_engine_is_refused(engine: str, name: str, owner: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: an option of the {owner} engine, the engine is {engine}$"):
        serve_options(None, {"engine": engine, name: "cpu"})
    assert serve_options(None, {"engine": owner, name: "cpu"}).own == {name: "cpu"}


def test_every_option_of_serve_is_heard_on_the_command_line_and_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: dict[str, object] = {}

    def listen(file: Path | None, given: dict[str, object]) -> None:
        heard.update(given)
        raise ConfigError("heard")

    with monkeypatch.context() as patch:
        patch.setattr("hotpolicy.launch.serve.serve_options", listen)
        options = inspect.signature(cli.serve).parameters.keys() - {"config", "as_json"}
        with pytest.raises(ConfigError, match="heard"):
            cli.serve(**dict.fromkeys(options, "here"), config=None, as_json=False)
    assert heard.keys() == {"keymaps" if name == "keymap" else name for name in options}

    code, _, err = call(capsys, monkeypatch, "serve", "--engine", "torch", "--provider", "cpu")
    assert (code, "provider: an option of the onnx engine, the engine is torch" in err) == (2, True)
    file = tmp_path / "serve.yaml"
    file.write_text("engine: onnx\nprovider: cpu\ncache: compiled\n")
    assert serve_options(file, {}).own == {"provider": "cpu", "cache": "compiled"}


def test_export_comes_with_a_certificate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, out = tmp_path / "store", tmp_path / "onnx"
    _, version, _ = call(capsys, monkeypatch, "add", "nano", "--store", store)
    code, text, err = call(capsys, monkeypatch, "export", version[:6], "--out", out, "--store", store, "--json")
    assert code == 0, err
    told = json.loads(text)
    assert (told["version"], told["folder"]) == (version.strip(), str(out))
    assert told["max_abs_error"] <= told["bound"] == 1e-4
    assert (out / "head.onnx").is_file()

    for arguments, wrong in (
        (["export", "beef", "--out", tmp_path / "other"], "no version 'beef'"),
        (["export", version[:6], "--out", out], "out: expected a folder that does not exist"),
    ):
        code, text, err = call(capsys, monkeypatch, *arguments, "--store", store)
        assert (code, text) == (2, "")
        assert wrong in err


def test_export_in_less_precision_on_recorded_frames(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, data = tuning_parts.full_bundle(tmp_path), tuning_parts.record(tmp_path / "data", range(3))
    given = ("export", bundle.folder, "--precision", "int8-static", "--dataset", data, "--frames", 5)
    code, text, err = call(capsys, monkeypatch, *given, "--bound", 9, "--out", tmp_path / "onnx", "--json")
    assert code == 0, err
    told = json.loads(text)
    assert [told[name] for name in ("precision", "bound", "golden", "recorded", "made_up")] == [
        "int8-static",
        9,
        3,
        5,
        6,
    ]
    assert "action_out_proj.weight" in told["keep"]
    assert [joint["unit"] for joint in told["joints"]] == ["deg", "deg", "percent"]

    for arguments, wrong in (
        ((*given, "--bound", 1e-9), "certificate: ONNX Runtime in int8-static differs from torch by"),
        ((*given[:-1], 5, "--precision", "int3"), "precision: expected one of fp32, fp16, int8, int8-static"),
        (("export", SHIPPED, *given[2:]), "state: expected (6,) float32, got (3,) float32"),
    ):
        code, text, err = call(
            capsys, monkeypatch, *arguments, "--out", tmp_path / "none", "--store", tmp_path / "store"
        )
        assert (code, text) == (2, "")
        assert wrong in err
        assert not (tmp_path / "none").exists()
