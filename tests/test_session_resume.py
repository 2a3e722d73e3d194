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
from classroom import classroom, control, plan, state

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.runtime.client import ControlClient
from hotpolicy.runtime.clock import Deadline
from hotpolicy.runtime.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """An arm and a server that outlive the session."""
    with classroom(tmp_path):
        plan(tmp_path, tasks=["hover over the red cube"], episodes=3, tuning={"steps": 12, "save_every": 0.1})
        yield tmp_path


def begin(place: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hotpolicy.launch.cli", "session", str(place / "session.yaml"), *options]
    with (place / "session.log").open("a") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True)


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
        lambda: sealed(place) >= 1,
        lambda: state(place / "session")["phase"] == "tuning" and training(place),
        lambda: any(entry["tries"] == 1 for entry in state(place / "session")["rounds"]),
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
    until(lambda: state(place / "session")["phase"] == "tuning" and tuners(place), process)
    os.kill(tuners(place)[0], signal.SIGKILL)
    assert process.wait(timeout=200) == 0, (place / "session.log").read_text()

    rounds = state(place / "session")["rounds"]
    assert [(entry["number"], entry["outcome"], entry["tries"]) for entry in rounds] == [(1, "live", 2), (2, "live", 2)]
    with ControlClient(control(place)) as client:
        assert client.status()["live"] == rounds[1]["version"]
        promoted = [change["version"] for change in client.history()["changes"] if change["action"] == "promote"]
    assert promoted == [entry["version"] for entry in rounds]  # each once
    dataset = Dataset.open(place / "session" / "dataset")
    dataset.verify()
    assert len(dataset) == 6
    store = Store(place / "policies")
    assert [bundle.id for bundle in store.chain(rounds[1]["version"])][1:] == promoted
    learned = store.open(rounds[1]["version"]).manifest.provenance
    assert "optimiser state carried on" in " ".join(learned["notes"])
    assert not tuners(place)
    assert "was killed; it is started again" in (place / "session.log").read_text()
