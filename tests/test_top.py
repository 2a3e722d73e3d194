"""`hotpolicy top`: rates, narrow terminals, a server that goes and comes back, JSON for scripts."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from hotpolicy.launch import cli
from hotpolicy.launch.top import follow, lost, render, watch
from hotpolicy.runtime.client import ControlClient, PolicyClient
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.engine.echo_engine import SPEC, EchoPolicy, seal_echo
from hotpolicy.runtime.messages import Observation
from hotpolicy.runtime.server import PolicyServer
from hotpolicy.runtime.serving.control import Control
from hotpolicy.runtime.slot import Slot
from hotpolicy.runtime.store import Store
from hotpolicy.runtime.versions.golden import Golden

COMMAND = [sys.executable, "-m", "hotpolicy.launch.cli", "top"]


class Site:
    """A server that can be stopped and started again."""

    def __init__(self, folder: Path):
        self.folder, self.endpoint = folder, f"ipc://{folder}/s"
        store = Store(folder / "store")
        base = seal_echo(folder / "made", 0, golden=Golden.blank(SPEC, 8, 2))
        self.base = store.add(base.folder)
        self.next = store.add(seal_echo(folder / "made", 1, parent=base).folder)
        self.start()

    def start(self) -> None:
        store = Store(self.folder / "store")
        slot = Slot(store, EchoPolicy.load)
        config = ServeConfig(endpoint=self.endpoint, drain_s=0.2)
        self.server = PolicyServer(config, slot, Control(slot, store))
        self.server.start()
        self.server.wait_ready(10)

    def ask(self, times: int) -> None:
        image = np.zeros((64, 64, 3), np.uint8)
        with PolicyClient(self.endpoint, timeout_s=5) as client:
            for _ in range(times):
                client.infer(Observation({"front": image}, np.zeros(6, np.float32), ""))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.server.stop()


def shown(frame: Any, width: int) -> list[str]:
    page = io.StringIO()
    Console(file=page, width=width, color_system=None).print(render(frame, width))
    return page.getvalue().splitlines()


def test_rates_are_of_the_interval_and_begin_anew_with_the_server() -> None:
    def stats(answered: int, up: float) -> dict[str, Any]:
        return {"uptime_s": up, "counts": {"answered": answered}}

    first = follow("e", None, stats(50, 10.0), 0.0)
    assert first.rates == {"answered": 5.0}
    second = follow("e", first, stats(70, 12.0), 2.0)
    assert second.rates == {"answered": 10.0}
    gone = lost("e", second, 3.0)
    assert (gone.state, gone.rates, gone.stats) == ("lost", {}, second.stats)
    back = follow("e", gone, stats(4, 0.5), 5.0)
    assert back.rates == {"answered": 8.0}
    assert follow("e", lost("e", second, 3.0), stats(120, 17.0), 5.0).rates == {"answered": 10.0}


@pytest.mark.parametrize("width", [24, 40, 60, 140])
def test_every_width_shows_what_matters(site: Site, width: int) -> None:
    site.ask(3)
    with ControlClient(site.server.control_endpoint) as operator:
        operator.swap(site.next)
    site.ask(2)
    lines = shown(follow(site.endpoint, None, site.server.stats(), 1.0), width)
    text = "".join(line.strip() for line in lines)
    assert all(len(line) <= width for line in lines)
    assert "ready" in text
    for label in ("live", "previous", "requests", "waiting", "swaps", "memory", "queue", "infer", "total", "p99"):
        assert label in text
    if width == 140:
        assert f"live          {site.next} for" in "\n".join(lines)
        assert "5 answered" in text
        assert "p95" in text
    if width < 60:
        assert "p95" not in text


def test_a_rollback_by_itself_and_a_restart_stand_out(site: Site) -> None:
    stats = site.server.stats()
    stats["restarts"] = 1
    stats["slot"] |= {"last_retreat": "c4f13caf: gave 3 faulty answers", "rollbacks": {"faults": 1}}
    text = "\n".join(shown(follow("e", None, stats, 1.0), 100))
    assert "rolled back by itself: c4f13caf: gave 3 faulty answers" in text
    assert "engine restarts 1" in text
    assert "rolled back 1 (faults)" in text


def test_a_server_that_goes_and_comes_back(site: Site) -> None:
    looks = watch(site.endpoint, 0.2)
    assert next(looks).state == "ready"
    site.server.stop()
    gone = next(looks)
    assert gone.state == "lost"
    assert "lost for" in " ".join(shown(gone, 80))
    assert site.base in "".join(shown(gone, 80)), "what was known of it stays"
    site.start()
    end = time.monotonic() + 10
    while (frame := next(looks)).state != "ready":
        assert time.monotonic() < end
    assert frame.lost_s is None
    looks.close()


def test_json_for_scripts(site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    site.ask(3)
    monkeypatch.setattr(sys, "argv", ["hotpolicy", "top", site.endpoint, "--once", "--json", "--interval-s", "0.1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    seen = json.loads(capsys.readouterr().out)
    assert (seen["state"], seen["lost_s"], seen["stats"]["counts"]["answered"]) == ("ready", None, 3)
    assert seen["stats"]["versions"]["live"] == site.base
    assert seen["per_s"]["answered"] == 0


def test_once_without_a_server_is_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["hotpolicy", "top", "tcp://127.0.0.1:9", "--once", "--interval-s", "0.1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code, capsys.readouterr().err) == (
        2,
        "hotpolicy: tcp://127.0.0.1:9: no answer from a server there\n",
    )


def test_live_in_a_terminal_until_ctrl_c(site: Site) -> None:
    ours, theirs = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    command = [*COMMAND, site.endpoint, "--interval-s", "0.2"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    page = b""
    while page.count(site.base.encode()) < 2:  # two refreshes at least
        page += os.read(ours, 65536)
    process.send_signal(signal.SIGINT)
    while process.poll() is None:
        try:
            os.read(ours, 65536)
        except OSError:  # the terminal's other end was closed
            break
    assert process.wait(10) == 0
    os.close(ours)
