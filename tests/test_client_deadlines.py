"""The client against servers that are absent, frozen, killed, restarted, or talk nonsense."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq
from serving import HORIZON, SPEC, observation

from hotpolicy.runtime import envelope, wire
from hotpolicy.runtime.client import ControlClient, PolicyClient
from hotpolicy.runtime.errors import BadReply, BadRequest, ConfigError, EngineFault, ServerLost
from hotpolicy.runtime.messages import ActionChunk, Observation

GRACE_S = 0.25  # scheduling noise on a busy machine

SERVE = """
import sys
sys.path.insert(0, "tests")
from serving import LevelPolicy, TinyControl, TinySlot
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.server import PolicyServer

slot = TinySlot(LevelPolicy(float(sys.argv[2])))
server = PolicyServer(ServeConfig(endpoint=sys.argv[1], drain_s=1), slot, TinyControl(slot))
server.run()
"""


class Served:
    """A server in its own process, to be frozen and killed."""

    def __init__(self, endpoint: str):
        self.endpoint = endpoint
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, level: float = 1.0) -> None:
        root = Path(__file__).parent.parent
        self.process = subprocess.Popen([sys.executable, "-c", SERVE, self.endpoint, str(level)], cwd=root)
        with PolicyClient(self.endpoint) as client:
            client.wait_ready(20)

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        if number == signal.SIGSTOP:  # on a busy machine its threads may run on for a while
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def end(self, number: int = signal.SIGKILL) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(number)
        code = self.process.wait(10)
        self.process = None
        return code


@pytest.fixture(params=["tcp", "ipc"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    if request.param == "ipc":
        endpoint = f"ipc://{tmp_path}/s"
    else:
        with zmq.Context() as context, context.socket(zmq.REP) as probe:
            endpoint = f"tcp://127.0.0.1:{probe.bind_to_random_port('tcp://127.0.0.1')}"
    server = Served(endpoint)
    yield server
    server.end()


def took(call: object, *arguments: object, **named: object) -> float:
    began = time.monotonic()
    with pytest.raises(ServerLost):
        call(*arguments, **named)  # type: ignore[operator]
    return time.monotonic() - began


def test_no_server_costs_the_deadline() -> None:
    with PolicyClient("tcp://127.0.0.1:9", timeout_s=0.1) as client:
        assert took(client.infer, observation()) < 0.1 + GRACE_S
        assert took(client.infer, observation(), deadline_ms=20) < 0.02 + GRACE_S
        assert took(client.hello) < 0.1 + GRACE_S
        assert took(client.ask, observation()) < GRACE_S, "ask does not wait"
        assert client.poll() is None
    with ControlClient("tcp://127.0.0.1:9", timeout_s=0.1) as operator:
        assert took(operator.swap, "v") < 0.1 + GRACE_S


def test_frozen_killed_restarted(served: Served) -> None:
    served.start(1.0)
    with PolicyClient(served.endpoint, timeout_s=0.3) as client:
        assert client.infer(observation(), deadline_ms=3000).version == "v1"
        served.send(signal.SIGSTOP)
        assert took(client.infer, observation()) < 0.3 + GRACE_S
        client.ask(observation(), deadline_ms=100)
        assert took(client.poll, 5.0) < 0.1 + GRACE_S
        assert client.poll() is None, "said once"
        served.send(signal.SIGCONT)
        time.sleep(0.2)
        chunk = client.infer(observation(), deadline_ms=3000)
        assert (chunk.version, chunk.request_id) == ("v1", 4)
        assert client.dropped["late"] >= 1
        served.end()
        assert took(client.infer, observation()) < 0.3 + GRACE_S
        served.start(2.0)
        assert client.wait_ready(5).version == "v2"
        assert client.infer(observation(), deadline_ms=3000).version == "v2"


def test_a_command_that_a_restart_swallowed_is_over_at_once(tmp_path: Path) -> None:
    """The server after it answers pings, and never heard of the command."""
    endpoint, over = f"ipc://{tmp_path}/s", threading.Event()

    def answer(server: zmq.Socket[bytes], asked: threading.Event) -> None:
        while not over.is_set() and not asked.is_set():
            if server.poll(20):
                peer, *frames = server.recv_multipart()
                message = wire.decode(frames)
                if message["kind"] == "ping":
                    pong = envelope.message("pong", message["id"], state="ready")
                    server.send_multipart([peer, *map(bytes, wire.encode(pong))])
                else:
                    asked.set()

    def serve() -> None:
        for _ in range(2):
            server = zmq.Context.instance().socket(zmq.ROUTER)
            server.linger = 0
            server.bind(endpoint)
            answer(server, threading.Event())
            server.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with ControlClient(endpoint, timeout_s=1.0, longest_s=30.0) as operator:
            began = time.monotonic()
            with pytest.raises(ServerLost, match="swap: the connection broke, or the server was restarted"):
                operator.swap("2")
            assert time.monotonic() - began < 10
            assert operator.ping() == "ready"  # and the next one reaches the new server
    finally:
        over.set()
        thread.join()


def test_sigterm_ends_the_server_with_grace(served: Served) -> None:
    served.start()
    assert served.end(signal.SIGTERM) == 0
    served.start()
    control = served.endpoint + ".control" if served.endpoint.startswith("ipc") else next_port(served.endpoint)
    with ControlClient(control) as operator:
        assert operator.shutdown() == {"state": "draining"}
    assert served.process is not None
    assert served.process.wait(10) == 0


def next_port(endpoint: str) -> str:
    address, _, port = endpoint.rpartition(":")
    return f"{address}:{int(port) + 1}"


class Puppet:
    """A server that answers each infer with whatever the script says."""

    def __init__(self) -> None:
        self.socket = zmq.Context.instance().socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.rcvtimeo = 3000
        self.endpoint = f"tcp://127.0.0.1:{self.socket.bind_to_random_port('tcp://127.0.0.1')}"

    def expect(self) -> tuple[bytes, int]:
        peer, *frames = self.socket.recv_multipart()
        return peer, wire.decode(frames)["id"]

    def send(self, peer: bytes, *frames: bytes) -> None:
        self.socket.send_multipart([peer, *frames])

    def answer(self, peer: bytes, id: int, level: float = 0.0, **changed: object) -> None:
        chunk = ActionChunk(np.full((HORIZON, 6), level, np.float32), 10.0, 0.0, id, "v", "d")
        self.send(peer, *map(bytes, wire.encode({**envelope.from_chunk(chunk), **changed})))


@pytest.fixture
def puppet() -> Iterator[Puppet]:
    server = Puppet()
    yield server
    server.socket.close(0)


def connected(endpoint: str, puppet: Puppet) -> PolicyClient:
    client = PolicyClient(endpoint, timeout_s=2.0)
    answering = threading.Thread(target=lambda: puppet.answer(*puppet.expect()))
    answering.start()
    client.infer(observation())
    answering.join()
    return client


def test_late_and_reordered_replies_are_never_taken_for_newer_ones(puppet: Puppet) -> None:
    with connected(puppet.endpoint, puppet) as client:
        old = client.ask(observation())
        peer, _ = puppet.expect()
        new = client.ask(observation())
        puppet.expect()
        for id in (old, new + 100, 0):
            puppet.answer(peer, id, level=13.0)
        assert client.poll(0.1) is None
        puppet.answer(peer, new, level=7.0)
        puppet.answer(peer, old, level=13.0)
        chunk = client.poll(2.0)
        assert chunk is not None
        assert (chunk.request_id, chunk.actions[0, 0]) == (new, 7.0)
        assert client.poll(0.05) is None
        answering = threading.Thread(target=lambda: puppet.answer(*puppet.expect(), level=9.0))
        answering.start()
        assert client.infer(observation()).actions[0, 0] == 9.0
        answering.join()


def test_a_new_episode_awaits_nothing_of_the_old_one(puppet: Puppet) -> None:
    with connected(puppet.endpoint, puppet) as client:
        id = client.ask(observation())
        peer, _ = puppet.expect()
        client.new_episode()
        puppet.answer(peer, id)
        assert client.poll(0.05) is None


def test_garbage_replies_cost_the_deadline_at_most(puppet: Puppet) -> None:
    with connected(puppet.endpoint, puppet) as client:
        client.ask(observation(), deadline_ms=300)
        peer, _ = puppet.expect()
        for frames in ([b""], [b"\xc1"], [b"x"] * 3, wire.encode({"v": 1}), wire.encode({"v": 1, "id": 2, "kind": 3})):
            puppet.send(peer, *map(bytes, frames))
        assert took(client.poll, 1.0) < 0.3 + GRACE_S
        assert client.dropped["garbage"] == 5


def test_a_flood_of_garbage_does_not_hold_the_caller(puppet: Puppet) -> None:
    with connected(puppet.endpoint, puppet) as client:
        client.ask(observation(), deadline_ms=200)
        peer, _ = puppet.expect()
        stop = threading.Event()

        def flood() -> None:
            while not stop.is_set():
                puppet.send(peer, b"garbage")

        flooding = threading.Thread(target=flood)
        flooding.start()
        try:
            assert took(client.poll, 1.0) < 0.2 + 4 * GRACE_S
        finally:
            stop.set()
            flooding.join()


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"actions": np.full((8, 6), np.nan, np.float32)}, "actions"),
        ({"actions": np.zeros((8, 6))}, "actions"),
        ({"actions": np.zeros(6, np.float32)}, "actions"),
        ({"actions": np.zeros((0, 6), np.float32)}, "actions"),
        ({"actions": None}, "actions"),
        ({"rate_hz": 0}, "rate_hz"),
        ({"rate_hz": float("nan")}, "rate_hz"),
        ({"version": 3}, "version"),
        ({"digest": "x" * 1000}, "digest"),
        ({"timings_ms": {"infer": "soon"}}, "infer"),
        ({"timings_ms": []}, "timings_ms"),
    ],
)
def test_a_reply_that_breaks_the_protocol_is_no_action(puppet: Puppet, changed: dict, field: str) -> None:
    with connected(puppet.endpoint, puppet) as client:
        id = client.ask(observation())
        peer, _ = puppet.expect()
        puppet.answer(peer, id, **changed)
        with pytest.raises(BadReply, match=f"^{field}: expected"):
            client.poll(2.0)
        assert client.poll() is None


def test_errors_come_back_as_their_class(puppet: Puppet) -> None:
    with connected(puppet.endpoint, puppet) as client:
        for reply, expected in (
            ({"code": "engine_fault", "text": "it broke"}, EngineFault),
            ({"code": "bad_request", "text": "state"}, BadRequest),
            ({"code": 7, "text": "state"}, BadReply),
        ):
            id = client.ask(observation())
            peer, _ = puppet.expect()
            puppet.send(peer, *map(bytes, wire.encode(envelope.message("error", id, **reply))))
            with pytest.raises(expected):
                client.poll(2.0)


def test_hello_must_make_sense(puppet: Puppet) -> None:
    good = {"spec": SPEC.to_dict(), "horizon": 8, "version": "v", "digest": "d", "state": "ready"}
    assert envelope.to_info(good).spec == SPEC
    for wrong in ({"spec": {}}, {"spec": {"joints": [{"x": 1}], "cameras": [], "rate_hz": 1}}, {"horizon": -1}):
        with pytest.raises(BadReply):
            envelope.to_info({**good, **wrong})


@pytest.mark.parametrize("endpoint", ["", "nonsense", "tcp://", "tcp://127.0.0.1", "http://x:1", "ipc://" + "x" * 300])
def test_an_endpoint_that_is_none(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="endpoint: expected"):
        PolicyClient(endpoint)


def test_calls_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="timeout_s"):
        PolicyClient("tcp://127.0.0.1:9", timeout_s=0)
    with PolicyClient("tcp://127.0.0.1:9") as client:
        for wrong in (0, -1, float("nan")):
            with pytest.raises(BadRequest, match="deadline_ms"):
                client.infer(observation(), deadline_ms=wrong)
        with pytest.raises(BadRequest, match="dtype"):
            client.infer(Observation({}, np.array([object()]), "t"))


def test_the_client_imports_nothing_heavy() -> None:
    code = "import sys; from hotpolicy.runtime import chunks, client; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "onnxruntime", "prometheus_client", "asyncio", "hotpolicy.runtime.server"} & set(loaded)
