"""What the service manager hears, on a real datagram socket, and how silence is measured."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.serving.life import NEXT, Life
from hotpolicy.runtime.serving.notify import Notifier
from hotpolicy.runtime.serving.pulse import GAP_S, Pulse


class Manager:
    """The service manager's end."""

    def __init__(self, address: str):
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(5)

    def heard(self) -> list[str]:
        return self.socket.recv(4096).decode().split("\n")


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    listening = Manager(f"@hotpolicy-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify"))
    yield listening
    listening.socket.close()


def test_the_manager_is_told_of_each_state(manager: Manager) -> None:
    life = Life(Notifier(manager.address).state)
    life.enter("warming", "v1")
    life.enter("ready", "v1\non tcp://127.0.0.1:5555")
    life.enter("draining")
    life.enter("stopped")
    assert [manager.heard() for _ in range(4)] == [
        ["STATUS=warming: v1"],
        ["READY=1", "STATUS=ready: v1 on tcp://127.0.0.1:5555"],
        ["STOPPING=1", "STATUS=draining"],
        ["STATUS=stopped"],
    ]
    Notifier(manager.address).alive()
    assert manager.heard() == ["WATCHDOG=1"]


def test_failing_is_told_once(manager: Manager) -> None:
    life = Life(Notifier(manager.address).state)
    life.fail("the engine crashed")
    life.fail("again")
    assert not life.enter("ready")
    assert manager.heard() == ["STOPPING=1", "STATUS=failed: the engine crashed"]
    manager.socket.settimeout(0)
    with pytest.raises(BlockingIOError):
        manager.heard()


def test_an_engine_restarts_once_and_only_once_it_was_ready() -> None:
    life = Life()
    assert not life.restart("while warming up")
    life.enter("warming")
    assert not life.restart("while warming up")
    life.enter("ready")
    assert life.restart("the first crash")
    assert (life.state, life.restarts) == ("warming", 1)
    life.enter("ready")
    assert not life.restart("the second one")
    assert (life.state, life.restarts) == ("ready", 1)


def test_no_state_comes_back_from_the_end() -> None:
    life = Life()
    life.enter("draining")
    assert not any(life.enter(state) for state in NEXT if state not in ("stopped", "failed"))
    assert life.enter("stopped")
    life.fail("too late")
    assert (life.state, life.failure) == ("stopped", "")


@pytest.mark.parametrize(
    ("environ", "watchdog_s"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, 0.0),
    ],
)
def test_the_watchdog_is_for_the_process_it_names(environ: dict[str, str], watchdog_s: float) -> None:
    assert Notifier.from_environment(environ).watchdog_s == watchdog_s


@pytest.mark.parametrize(
    ("environ", "match"),
    [
        ({"NOTIFY_SOCKET": "vsock:2:1234"}, "NOTIFY_SOCKET: expected a path or @NAME"),
        ({"WATCHDOG_USEC": "soon"}, "WATCHDOG_USEC: expected a whole number"),
    ],
)
def test_variables_that_make_no_sense(environ: dict[str, str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Notifier.from_environment(environ)


def test_a_manager_that_is_gone_or_does_not_read_holds_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gone = Notifier(str(tmp_path / "nobody"))
    for _ in range(3):
        gone.alive()
    assert caplog.text.count("was not told WATCHDOG=1") == 1
    deaf = Manager(str(tmp_path / "deaf"))
    notifier = Notifier(deaf.address)
    began = time.monotonic()
    for _ in range(2000):
        notifier.alive()
    assert time.monotonic() - began < 5
    assert caplog.text.count("was not told WATCHDOG=1") == 2
    deaf.socket.close()


def test_silence_is_what_the_looker_could_see() -> None:
    pulse = Pulse()
    assert pulse.look(1, 100.0) == 0
    assert [pulse.look(1, 100.0 + n) for n in (1, 2, 3)] == [1, 2, 3]
    assert pulse.look(1, 5000.0) == 3 + GAP_S, "the process was stopped meanwhile"
    assert pulse.look(2, 5001.0) == 0
