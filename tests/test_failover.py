"""Several servers: whom to ask, as a decision alone, and between processes that are killed, frozen and restarted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import observation

from hotpolicy.runtime.client import PolicyClient
from hotpolicy.runtime.connection import PATIENCE_S
from hotpolicy.runtime.errors import BadRequest, ConfigError, Draining, ServeError, ServerLost
from hotpolicy.runtime.failover import FIRST_HOLD_S, LONGEST_HOLD_S, Failover
from hotpolicy.runtime.messages import Observation, Rtc

GRACE_S = 0.25  # scheduling noise on a busy machine

# the decision


def test_the_next_one_is_asked_until_the_first_is_ready_again() -> None:
    failover = Failover(3)
    failover.lose(now=10.0)
    assert (failover.active, failover.due(10.0), failover.left) == (1, None, 1)
    later = 10.0 + FIRST_HOLD_S
    assert failover.due(later) == 0
    assert not failover.looked(0, False, later)
    assert failover.due(later + FIRST_HOLD_S) is None, "held away twice as long"
    assert failover.due(later + 2 * FIRST_HOLD_S) == 0
    assert failover.looked(0, True, later + 2 * FIRST_HOLD_S)
    assert (failover.active, failover.due(1e9)) == (0, None)


def test_a_server_held_away_is_asked_last() -> None:
    failover = Failover(3)
    for now in (0.0, 0.1, 0.2):
        failover.lose(now)
    assert failover.active == 0, "all are held away: the one whose time is over first"
    assert failover.order(0.2) == [0, 1, 2]
    failover.lose(0.3)
    assert failover.order(0.3) == [1, 2, 0]
    assert failover.order(100.0) == [1, 0, 2]


def test_a_single_server_is_never_left() -> None:
    failover = Failover(1)
    failover.lose(0.0)
    assert (failover.active, failover.left, failover.due(1e9)) == (0, 0, None)


@given(st.lists(st.tuples(st.sampled_from(["lose", "ready", "away", "wait"]), st.floats(0, 20)), max_size=60))
def test_the_first_is_looked_at_again_within_the_longest_hold(steps: list[tuple[str, float]]) -> None:
    failover, now = Failover(3), 0.0
    for step, seconds in steps:
        now += seconds
        due = failover.due(now)
        if step == "lose":
            failover.lose(now)
        elif due is not None:
            assert due < failover.active
            failover.looked(due, step == "ready", now)
        assert sorted(failover.order(now)) == [0, 1, 2]
        assert failover.order(now)[0] == failover.active
    if failover.active:
        assert failover.due(now + LONGEST_HOLD_S + 1e-6) == 0


# real servers

SERVE = """
import sys
sys.path.insert(0, "tests")
from serving import LevelPolicy, TinyControl, TinySlot
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.server import PolicyServer

slot = TinySlot(LevelPolicy(float(sys.argv[2]), float(sys.argv[3])))
server = PolicyServer(ServeConfig(endpoint=sys.argv[1], drain_s=3), slot, TinyControl(slot))
server.run()
"""


class Served:
    """A server in its own process, to be frozen and killed."""

    def __init__(self, endpoint: str):
        self.endpoint = endpoint
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, level: float, delay_s: float = 0.0) -> Served:
        command = [sys.executable, "-c", SERVE, self.endpoint, str(level), str(delay_s)]
        self.process = subprocess.Popen(command, cwd=Path(__file__).parent.parent)
        with PolicyClient(self.endpoint) as client:
            client.wait_ready(20)
        return self

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(10)
            self.process = None


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Served, Served]]:
    """Two servers, not started yet."""
    servers = Served(f"ipc://{tmp_path}/a"), Served(f"ipc://{tmp_path}/b")
    yield servers
    for server in servers:
        server.kill()


def client_of(pair: tuple[Served, Served], timeout_s: float = 5.0) -> PolicyClient:
    return PolicyClient([server.endpoint for server in pair], timeout_s=timeout_s)


def until(client: PolicyClient, version: str, seconds: float = 15.0) -> None:
    """Ask on, as a loop does, until this version answers."""
    end = time.monotonic() + seconds
    while client.infer(observation()).version != version:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_kill_in_mid_request_then_restart(pair: tuple[Served, Served]) -> None:
    first, second = pair[0].start(1, delay_s=0.4), pair[1].start(2)
    with client_of(pair) as client:
        assert client.infer(observation()).version == "v1"
        client.ask(observation(), deadline_ms=600)
        time.sleep(0.1)
        first.kill()
        began = time.monotonic()
        with pytest.raises(ServerLost, match="/a: no answer before the deadline"):
            client.poll(5)
        assert time.monotonic() - began < 0.6 + GRACE_S
        assert client.infer(observation()).version == "v2"
        assert (client.failovers, client.endpoint) == (1, second.endpoint)
        first.start(3)
        until(client, "v3")
        assert (client.failovers, client.endpoint) == (1, first.endpoint)


def test_a_server_killed_between_two_requests_costs_a_moment(pair: tuple[Served, Served]) -> None:
    pair[0].start(1), pair[1].start(2)
    with client_of(pair) as client:
        client.infer(observation())
        pair[0].kill()
        began = time.monotonic()
        assert client.infer(observation()).version == "v2"
        assert time.monotonic() - began < PATIENCE_S + GRACE_S
        pair[1].kill()
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(ServerLost):
                client.infer(observation(), deadline_ms=100)
            assert time.monotonic() - began < 0.1 + GRACE_S
            began = time.monotonic()
            with pytest.raises(ServerLost):
                client.ask(observation())
            assert time.monotonic() - began < GRACE_S


def test_a_frozen_server_costs_a_deadline_and_its_late_replies_are_dropped(pair: tuple[Served, Served]) -> None:
    first = pair[0].start(1)
    pair[1].start(2)
    with client_of(pair) as client:
        client.infer(observation())
        first.freeze()
        began = time.monotonic()
        with pytest.raises(ServerLost):
            client.infer(observation(), deadline_ms=200)
        assert time.monotonic() - began < 0.2 + GRACE_S
        chunks = [client.infer(observation()) for _ in range(5)]
        assert [chunk.version for chunk in chunks] == ["v2"] * 5
        first.send(signal.SIGCONT)
        ids = [chunk.request_id for chunk in chunks]
        end = time.monotonic() + 15
        while (chunk := client.infer(observation())).version != "v1":
            assert time.monotonic() < end
            ids.append(chunk.request_id)
            time.sleep(0.02)
        assert ids == sorted(set(ids))
        assert client.dropped["late"] >= 1, "what the frozen one answered at last"
        assert client.infer(observation()).request_id > ids[-1]


def test_a_draining_server_is_left_without_losing_a_deadline(pair: tuple[Served, Served]) -> None:
    first = pair[0].start(1, delay_s=1.0)
    pair[1].start(2)
    with client_of(pair) as client, PolicyClient(first.endpoint, timeout_s=5) as other:
        other.ping(), client.ping()
        other.ask(observation())  # keeps the first one draining for a second
        time.sleep(0.2)
        first.send(signal.SIGTERM)
        time.sleep(0.2)
        began = time.monotonic()
        with pytest.raises(Draining):
            client.infer(observation())
        assert client.infer(observation()).version == "v2"
        assert time.monotonic() - began < 0.5
        assert other.poll(5) is not None, "what it had taken on is answered"


def test_wait_ready_takes_the_first_that_is(pair: tuple[Served, Served]) -> None:
    pair[1].start(2)
    with client_of(pair) as client:
        assert client.wait_ready(10).version == "v2"
        assert client.infer(observation()).version == "v2"


def test_the_chunk_being_executed_does_not_survive_a_change_of_server(pair: tuple[Served, Served]) -> None:
    pair[0].start(1), pair[1].start(2)
    with client_of(pair) as client:
        chunk = client.infer(observation())
        pair[0].kill()
        following = client.infer(
            observation(), rtc=Rtc(previous=chunk.request_id, executed=2, delay=1, execution_horizon=4)
        )
        assert (following.version, following.guided) == ("v2", False)


def test_a_loop_goes_on_through_a_kill(pair: tuple[Served, Served]) -> None:
    """Asked at 50 Hz without ever waiting: no step is longer than a moment, and soon the other server answers."""
    first = pair[0].start(1)
    pair[1].start(2)
    versions: list[str] = []
    with client_of(pair, timeout_s=0.3) as client:
        client.hello()
        asked, longest = False, 0.0
        for tick in range(75):
            if tick == 25:
                first.kill()
            began = time.monotonic()
            try:
                if (chunk := client.poll()) is not None:
                    versions.append(chunk.version)
                    asked = False
                if not asked:
                    client.ask(observation())
                    asked = True
            except ServeError:
                asked = False
            longest = max(longest, time.monotonic() - began)
            time.sleep(0.02)
    assert longest < GRACE_S
    assert set(versions) == {"v1", "v2"}
    assert versions == sorted(versions)
    assert versions.count("v2") > 5


def test_what_the_caller_did_wrong_is_no_reason_to_leave(pair: tuple[Served, Served]) -> None:
    pair[0].start(1), pair[1].start(2)
    with client_of(pair) as client:
        client.infer(observation())
        with pytest.raises(BadRequest):
            client.infer(Observation({}, observation().state, ""))
        assert client.infer(observation()).version == "v1"
        assert client.failovers == 0


@pytest.mark.parametrize("endpoints", [[], ["ipc:///tmp/x", "ipc:///tmp/x"], ["ipc:///tmp/x", "nonsense"]])
def test_endpoints_that_make_no_sense(endpoints: list[str]) -> None:
    with pytest.raises(ConfigError, match="endpoint: expected"):
        PolicyClient(endpoints)
