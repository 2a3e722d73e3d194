"""The server is killed during swaps. It starts again on the last good version, and the same request then ends well."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from swap_server import MOMENTS

from hotpolicy.runtime.client import ControlClient, PolicyClient
from hotpolicy.runtime.engine.echo_engine import seal_echo
from hotpolicy.runtime.errors import ServerLost
from hotpolicy.runtime.messages import Observation
from hotpolicy.runtime.store import Store

SERVER = Path(__file__).with_name("swap_server.py")
AFTER_THE_POINTER = ("history", "flip")  # moments at which the swap is a fact already


class Site:
    """A store with a base (level 0) and deltas, and a server process on it that may die."""

    def __init__(self, folder: Path, versions: int):
        self.root = folder / "store"
        store = Store(self.root)
        base = seal_echo(folder / "made", 0)
        store.add(base.folder)
        deltas = [store.add(seal_echo(folder / "made", n, parent=base).folder) for n in range(1, versions)]
        self.versions = [base.id, *deltas]
        self.endpoint = f"ipc://{folder}/s"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, moment: str = "") -> None:
        self.process = subprocess.Popen([sys.executable, str(SERVER), str(self.root), self.endpoint, moment])

    def kill(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def control(self) -> ControlClient:
        return ControlClient(f"{self.endpoint}.control", timeout_s=2.0)

    def serves(self) -> str:
        """The version that answers, once the server is up; its actions must be that version's."""
        with PolicyClient(self.endpoint, timeout_s=5) as client:
            client.wait_ready(20)
            image = np.zeros((64, 64, 3), np.uint8)
            chunk = client.infer(Observation({"front": image}, np.zeros(6, np.float32), ""))
        assert (chunk.actions == self.versions.index(chunk.version)).all()
        return chunk.version


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("k")  # short: it is part of an ipc path


@pytest.fixture
def started(folder: Path) -> Iterator[Site]:
    site = Site(folder, versions=40)
    yield site
    site.kill()


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_a_moment_of_a_swap(started: Site, moment: str) -> None:
    site, (base, new) = started, started.versions[:2]
    site.start(moment)
    assert site.serves() == base
    with site.control() as control:
        control.timeout_s = 0.5
        with pytest.raises(ServerLost):
            control.swap(new, request_id="r1", by="test")
    assert site.process is not None
    assert site.process.wait(10) == -signal.SIGKILL
    assert Store(site.root).live() == (new if moment in AFTER_THE_POINTER else base)
    site.start()
    assert site.serves() == (new if moment in AFTER_THE_POINTER else base)
    with site.control() as control:
        assert control.swap(new, request_id="r1", by="test")["version"] == new
        assert [change["version"] for change in control.history()["changes"]] == [new]
    assert site.serves() == new


@pytest.mark.slow
def test_killed_at_random_moments(started: Site) -> None:
    """One swap after another, as fast as they go, and SIGKILL at a random time, eight times over, and on until a swap
    came through: on a busy disk one takes as long as the server lives."""
    site, randomness = started, random.Random(3)
    acknowledged, asked = site.versions[0], 0
    for n in range(40):
        if n >= 8 and acknowledged != site.versions[0]:
            break
        site.start()
        live = site.serves()
        assert live in (acknowledged, site.versions[asked])  # the one under way may have come through, or not
        acknowledged, asked = live, site.versions.index(live)
        killer = threading.Timer(randomness.uniform(0.0, 0.05), site.kill)
        with site.control() as control:
            control.timeout_s = 0.5
            killer.start()
            while asked + 1 < len(site.versions):
                asked += 1
                try:
                    acknowledged = control.swap(site.versions[asked], by="test")["version"]
                except ServerLost:
                    break
        killer.join()
    told = [change.version for change in Store(site.root).history()]
    assert told == site.versions[1 : len(told) + 1]  # every swap once, in order
    assert len(told) >= site.versions.index(acknowledged) > 0
