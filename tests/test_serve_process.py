"""A real `hotpolicy serve`: what its service manager hears, its options for the guard, and its exit codes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hotpolicy.launch.serving.options import serve_options
from hotpolicy.runtime.client import PolicyClient
from hotpolicy.runtime.engine.echo_engine import SPEC, seal_echo
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.messages import Observation
from hotpolicy.runtime.store import Store
from hotpolicy.runtime.versions.golden import Golden
from hotpolicy.runtime.versions.watch import OFF, Guard

WATCHDOG_S = 0.6
SLOW_MS = 1500  # longer than the watchdog's interval


class Serving:
    """`hotpolicy serve` under a service manager that listens."""

    def __init__(self, folder: Path, delay_ms: float):
        golden = Golden.blank(SPEC, 8, 1)
        Store(folder / "store").add(seal_echo(folder / "made", 1, delay_ms=delay_ms, golden=golden).folder)
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(folder / "notify"))
        self.endpoint = f"ipc://{folder}/s"
        environ = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}
        command = [sys.executable, "-m", "hotpolicy.launch.cli", "serve"]
        options = ["--engine", "echo", "--store", str(folder / "store"), "--endpoint", self.endpoint]
        self.process = subprocess.Popen([*command, *options], env={**os.environ, **environ})

    def hear(self, timeout_s: float) -> list[str] | None:
        """The lines of the next message; None after so long."""
        self.manager.settimeout(timeout_s)
        try:
            return self.manager.recv(4096).decode().split("\n")
        except TimeoutError:
            return None

    def hear_until(self, line: str) -> list[str]:
        """All lines up to this one."""
        heard: list[str] = []
        while line not in heard:
            lines = self.hear(20)
            assert lines is not None, f"{heard} and then nothing"
            heard += lines
        return heard


@pytest.fixture
def serving(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Serving]:
    served = Serving(tmp_path, getattr(request, "param", 0.0))
    yield served
    served.process.send_signal(signal.SIGCONT)
    served.process.kill()
    served.process.wait()
    served.manager.close()


def test_ready_is_said_after_the_warm_up_and_stopping_before_the_end(serving: Serving) -> None:
    heard = serving.hear_until("READY=1")
    said = [line for line in heard if line.startswith("STATUS=")]
    assert said[0].startswith("STATUS=starting: loading from ")
    assert said[1].startswith("STATUS=warming: ")
    with PolicyClient(serving.endpoint) as client:
        assert client.ping() == "ready"
    serving.process.send_signal(signal.SIGTERM)
    serving.hear_until("STOPPING=1")
    assert serving.process.wait(20) == 0


@pytest.mark.parametrize("serving", [SLOW_MS], indirect=True)
def test_an_inference_longer_than_the_watchdogs_interval_keeps_it_fed(serving: Serving) -> None:
    serving.hear_until("READY=1")
    serving.hear(20)  # the status
    image = np.zeros((64, 64, 3), np.uint8)
    with PolicyClient(serving.endpoint, timeout_s=20) as client:
        client.ping()
        client.ask(Observation({"front": image}, np.zeros(6, np.float32), ""))
        while serving.hear(0.001):
            pass  # what was said before
        fed = 0
        while (chunk := client.poll(0.05)) is None:
            fed += serving.hear(0.001) == ["WATCHDOG=1"]
    assert chunk.timings_ms["infer"] >= SLOW_MS
    assert fed >= SLOW_MS / 1000 / WATCHDOG_S


def test_a_frozen_server_starves_the_watchdog(serving: Serving) -> None:
    serving.hear_until("READY=1")
    serving.hear_until("WATCHDOG=1")
    serving.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, serving.process.pid, os.WSTOPPED | os.WNOWAIT)
    while serving.hear(0.05):
        pass  # what was said before
    assert serving.hear(2 * WATCHDOG_S) is None
    serving.process.send_signal(signal.SIGCONT)
    assert serving.hear(20) == ["WATCHDOG=1"]


def test_the_guards_bounds_come_from_the_file_and_the_command_line_switches_it_off(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("engine: echo\nlongest_inference_s: 30\nguard: {step: 0.5, trips: 5, slowdown: 2, grace_ms: 0}\n")
    options = serve_options(file, {})
    assert options.checks.guard == Guard(step=0.5, trips=5, slowdown=2.0, grace_ms=0.0)
    assert options.config.longest_inference_s == 30
    assert serve_options(file, {"guard": False}).checks.guard == OFF
    assert serve_options(None, {}).checks.guard == Guard()
    file.write_text("guard: false")
    assert serve_options(file, {}).checks.guard == OFF
    assert serve_options(file, {"guard": True}).checks.guard == Guard()
    file.write_text("guard: {speed: 1}")
    with pytest.raises(ConfigError, match="guard: unknown speed"):
        serve_options(file, {})
