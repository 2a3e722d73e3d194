"""Recording and running through the command line: a virtual arm in its own process, a served policy, a dataset."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from calling import call

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.launch.profile_file import SHIPPED, load_profile
from hotpolicy.launch.run import require_fit
from hotpolicy.launch.serving.options import serve_options
from hotpolicy.launch.serving.server import make_server
from hotpolicy.launch.teleop import half_blocks
from hotpolicy.runtime import durable
from hotpolicy.runtime.control_client import ControlClient
from hotpolicy.runtime.engine.echo_engine import seal_echo
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.store import Store

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hp") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def robot(folder: Path) -> Path:
    """A profile of a virtual arm with port and sockets of its own."""
    data = yaml.safe_load((SHIPPED / "virtual_so101.yaml").read_text())
    data["arm"] |= {"port": f"{folder}/port", "calibration": str(SHIPPED / "virtual_so101.json")}
    data |= {
        "world": f"ipc://{folder}/world",
        "server": {"endpoint": f"ipc://{folder}/p", "control": f"ipc://{folder}/c"},
    }
    file = folder / "arm.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return file


@pytest.fixture(scope="module")
def arm(robot: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "hotpolicy.launch.cli", "virtual-arm", "--robot", str(robot)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready: ")
        yield
        process.terminate()
        assert process.wait(20) == 0


def test_record_demonstrations(
    folder: Path, robot: Path, arm: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = "touch the red cube"
    arguments = ["record", folder / "data", "--robot", robot, "--task", task, "--episodes", 2]
    code, out, err = call(capsys, monkeypatch, *arguments, "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert [row["success"] for row in rows] == [True, True]
    dataset = Dataset.open(folder / "data")
    assert [len(dataset.episode(index).state) for index in range(2)] == [row["ticks"] for row in rows]
    assert dataset.episode(0).task == task
    assert dataset.episode(0).success

    assert "2 of 2 succeeded" in call(capsys, monkeypatch, *arguments)[1]
    assert len(Dataset.open(folder / "data")) == 4  # goes on where it stopped


def test_record_by_keyboard(folder: Path, robot: Path, arm: None) -> None:
    """A person at a terminal: q turns the shoulder, the right arrow ends the episode, escape the recording."""
    person, terminal = os.openpty()
    command = [sys.executable, "-m", "hotpolicy.launch.cli", "record", f"{folder}/by-hand", "--robot", str(robot)]
    command += ["--task", "touch the red cube", "--teleop", "keyboard", "--episodes", "2", "--longest-s", "20"]
    with subprocess.Popen(command, cwd=ROOT, stdin=terminal, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "touch the red cube" not in process.stderr.readline():
            pass  # the picture begins
        time.sleep(0.5)  # and the episode with it: a key from before it would not count
        for key in (b"q", b"q", b"\x1b[C", b"\x1b"):
            os.write(person, key)
            time.sleep(0.3)  # a person's pace, three ticks
        assert "saved: no success" in process.stderr.read()  # the referee saw no touch
        assert process.wait(30) == 0
    os.close(person)
    os.close(terminal)
    dataset = Dataset.open(folder / "by-hand")
    assert len(dataset) == 1
    episode = dataset.episode(0)
    assert episode.action[-1, 0] - episode.state[0, 0] == pytest.approx(6.0, abs=0.5)  # two keys of 3 deg


def test_run_a_served_policy(
    folder: Path, robot: Path, arm: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = load_profile(robot)
    bundle = seal_echo(folder / "made", 0.0, spec=profile.spec)
    Store(folder / "store").add(bundle.folder)
    given = {"store": folder / "store", "engine": "echo", "endpoint": profile.endpoint, "control": profile.control}
    with make_server(serve_options(None, given)) as server:
        server.wait_ready()
        arguments = ["run", "--robot", robot, "--task", "touch the red cube", "--record", folder / "seen"]
        code, out, err = call(capsys, monkeypatch, *arguments, "--json", "--release")
    assert code == 0, err
    (row,) = json.loads(out)
    assert row["versions"] == bundle.id
    assert (row["success"], row["held"]) == (False, 0)
    seen = Dataset.open(folder / "seen")
    assert seen.versions == (bundle.id,)


@pytest.mark.parametrize("verb", ["record", "session"])
def test_a_full_disk_is_told_before_anybody_demonstrates_anything(
    folder: Path, robot: Path, arm: None, verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(folder)._replace(free=12_300_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    monkeypatch.setattr(ControlClient, "ping", lambda client: "ready")
    store = Store(folder / "for_a_session")
    with monkeypatch.context() as patch:
        patch.setattr(durable, "require_room", lambda *arguments: None)
        store.add(seal_echo(folder / "made", 0.0, spec=load_profile(robot).spec).folder)
    arguments = [verb, folder / "full", "--robot", robot, "--task", "touch the red cube"]
    code, out, err = call(capsys, monkeypatch, *arguments, *(["--store", store.root] if verb == "session" else []))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith(f"hotpolicy: {folder}/full")
    assert "No space left on device: 64.0 MB are needed, 12.3 MB are free" in err
    assert not [path for path in (folder / "full").glob("**/*") if path.is_file()]


def test_session_without_a_server(
    folder: Path, robot: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["session", folder / "never", "--task", "hover over the red cube", "--robot", robot]
    code, out, err = call(capsys, monkeypatch, *arguments, "--control", f"ipc://{folder}/nobody")
    assert (code, out) == (2, "")
    assert "no server there" in err
    assert not (folder / "never").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run", "--task", "touch the red cube"], "no server there before the deadline"),
        (["run", "--task", "x", "--boundary", "never"], "boundary: expected chunk or episode, got 'never'"),
        (["run", "--task", "x", "--chunking", "never"], "chunking: expected one of sync, async, rtc, got 'never'"),
        (["record", "{folder}/none", "--task", "juggle the cubes"], "task: expected a verb of"),
        (["record", "{folder}/none", "--task", "touch the red cube", "--teleop", "thought"], "teleop: expected"),
        (
            ["record", "{folder}/none", "--task", "touch the red cube", "--teleop", "keyboard"],
            "keyboard: expected a term",
        ),
    ],
)
def test_bad_input_is_one_line(
    folder: Path,
    robot: Path,
    arm: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    text: str,
) -> None:
    given = [argument.format(folder=folder) for argument in arguments]
    code, out, err = call(capsys, monkeypatch, *given, "--robot", robot)
    assert (code, out) == (2, "")
    assert text in err.splitlines()[-1]


def test_no_arm_there(
    folder: Path, robot: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = yaml.safe_load(robot.read_text())
    data["arm"]["port"] = f"{folder}/nowhere"
    file = folder / "other.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    code, _, err = call(capsys, monkeypatch, "record", folder / "none", "--task", "touch the red cube", "--robot", file)
    assert code == 2
    assert "nowhere" in err.splitlines()[-1]


def test_policy_for_another_robot() -> None:
    spec = load_profile("virtual_so101").spec
    require_fit(spec, spec)
    with pytest.raises(ConfigError, match=r"rate_hz: the served policy expects 30\.0, this robot has 10\.0"):
        require_fit(replace(spec, rate_hz=30.0), spec)
    with pytest.raises(ConfigError, match="joints: the served policy expects"):
        require_fit(replace(spec, joints=spec.joints[:5]), spec)
    with pytest.raises(ConfigError, match="cameras: the served policy expects"):
        require_fit(replace(spec, cameras=()), spec)


@pytest.mark.parametrize(("size", "lines", "across"), [(64, 32, 64), (65, 16, 33), (224, 28, 56)])
def test_picture_fits_a_terminal(size: int, lines: int, across: int) -> None:
    text = half_blocks(np.zeros((size, size, 3), np.uint8))
    assert text.count("\n") + 1 == lines
    assert text.split("\n")[0].count("▀") == across
