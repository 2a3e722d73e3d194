"""A session killed at any moment: the same command goes on, and nothing is lost, done twice or left over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.launch.nano import SHIPPED
from hotpolicy.launch.processes import Child
from hotpolicy.launch.profile import find_profile
from hotpolicy.runtime.client import ControlClient
from hotpolicy.runtime.clock import Deadline
from hotpolicy.runtime.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PLAN = """\
robot: {place}/robot.yaml
folder: {place}/session
store: {place}/policies
control: ipc://{place}/s.control
tasks: [hover over the red cube, hover over the blue cube]
rounds: 1
episodes: 8
tries: 2
promote: auto
tuning: {{ steps: 30, save_every: 0.1 }}
gate: {{ trials: 0, old_error: 1000 }}
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A virtual arm and a server that outlive the session."""
    profile = yaml.safe_load(find_profile("virtual_so101").read_text())
    profile["arm"]["port"] = str(tmp_path / "arm")
    profile["arm"]["calibration"] = str(find_profile("virtual_so101").parent / profile["arm"]["calibration"])
    profile["world"] = f"ipc://{tmp_path}/world"
    profile["server"] = {"endpoint": f"ipc://{tmp_path}/s", "control": f"ipc://{tmp_path}/s.control"}
    (tmp_path / "robot.yaml").write_text(yaml.safe_dump(profile, sort_keys=False))
    (tmp_path / "plan.yaml").write_text(PLAN.format(place=tmp_path))
    Store(tmp_path / "policies").add(SHIPPED)
    serving = ["serve", "--store", str(tmp_path / "policies"), "--endpoint", f"ipc://{tmp_path}/s"]
    with (
        Child("arm", ["virtual-arm", "--robot", str(tmp_path / "robot.yaml")], tmp_path / "arm.log") as arm,
        Child("server", serving, tmp_path / "server.log") as server,
    ):
        arm.wait_ready()
        server.wait_ready()
        yield tmp_path


def begin(place: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hotpolicy.launch.cli", "session", str(place / "plan.yaml"), *options]
    with (place / "session.log").open("a") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True)


def state(place: Path) -> dict[str, object]:
    path = place / "session" / "session.json"
    return json.loads(path.read_text()) if path.exists() else {"phase": "idle", "rounds": []}


def sealed(place: Path) -> int:
    try:
        return int(json.loads((place / "session" / "dataset" / "meta" / "info.json").read_text())["total_episodes"])
    except FileNotFoundError:
        return 0


def tuners(place: Path) -> list[int]:
    """Tuning processes of this session, whoever their parent is now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"finetune" in words and str(place / "session" / "dataset").encode() in words:
            found.append(int(path.parent.name))
    return found


def until(true: Callable[[], object], process: subprocess.Popen[str], within_s: float = 120.0) -> None:
    deadline = Deadline.after(within_s)
    while not true():
        assert process.poll() is None, "it ended before"
        assert not deadline.passed()
        time.sleep(0.02)


def training(place: Path) -> bool:
    return any((place / "policies" / "training").glob("*/step-*"))


def test_killed_at_every_stage(place: Path) -> None:
    """The session in the first demonstrations, while tuning, and while the new version is tried; then, in a second
    round, the tuning process alone."""
    moments: list[Callable[[], object]] = [
        lambda: sealed(place) >= 2,
        lambda: state(place)["phase"] == "tuning" and training(place),
        lambda: any(entry["tries"] == 1 for entry in state(place)["rounds"]),  # type: ignore[attr-defined]
    ]
    before = 0
    for moment in moments:
        process = begin(place)
        until(moment, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert sealed(place) >= before
        before = sealed(place)
        alone = Deadline.after(30)
        while tuners(place):  # nobody stops it but it itself
            assert not alone.passed()
            time.sleep(0.1)
    process = begin(place, "--rounds", "2")
    until(lambda: state(place)["phase"] == "tuning" and tuners(place), process)
    os.kill(tuners(place)[0], signal.SIGKILL)
    assert process.wait(timeout=200) == 0, (place / "session.log").read_text()

    rounds = state(place)["rounds"]
    assert isinstance(rounds, list)
    assert [(entry["number"], entry["outcome"], entry["tries"]) for entry in rounds] == [(1, "live", 2), (2, "live", 2)]
    with ControlClient(f"ipc://{place}/s.control") as control:
        assert control.status()["live"] == rounds[1]["version"]
        promoted = [change["version"] for change in control.history()["changes"] if change["action"] == "promote"]
    assert promoted == [entry["version"] for entry in rounds]  # each once
    dataset = Dataset.open(place / "session" / "dataset")
    dataset.verify()
    assert len(dataset) == 16
    store = Store(place / "policies")
    assert [bundle.id for bundle in store.chain(rounds[1]["version"])][1:] == promoted
    learned = store.open(rounds[1]["version"]).manifest.provenance
    assert "optimiser state carried on" in " ".join(learned["notes"])
    assert not tuners(place)
    assert "was killed; it is started again" in (place / "session.log").read_text()
