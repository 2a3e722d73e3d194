"""What a peer that misbehaves costs the others: at most one inference; and the server, little memory."""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import zmq
from flood import WAYS, endless
from serving import LevelPolicy, TinyControl, TinySlot, observation

from hotpolicy.runtime import envelope, keys, wire
from hotpolicy.runtime.client import ControlClient, PolicyClient
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.errors import ServerLost
from hotpolicy.runtime.keys import ClientKeys
from hotpolicy.runtime.messages import Observation
from hotpolicy.runtime.server import PolicyServer
from hotpolicy.runtime.serving import crowd

INFERENCE_S = 0.1
GRACE_S = 0.15  # one more process on a busy machine
STALL_S = 0.5  # of such a machine, once
MOST_MB = 120.0  # of memory gained: largest messages waiting, replies unread, and what an allocator keeps
SERVE = f"""
import sys
sys.path.insert(0, "tests")
from serving import LevelPolicy, TinyControl, TinySlot
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.server import PolicyServer

slot = TinySlot(LevelPolicy(delay_s={INFERENCE_S}))
PolicyServer(ServeConfig(endpoint=sys.argv[1], drain_s=0.1), slot, TinyControl(slot)).run()
"""
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with zmq.Context() as context, context.socket(zmq.REP) as probe:
        address = f"tcp://127.0.0.1:{probe.bind_to_random_port('tcp://127.0.0.1')}"
    process = subprocess.Popen([sys.executable, "-c", SERVE, address], cwd=ROOT)
    try:
        with PolicyClient(address) as client:
            client.wait_ready(20)
        yield address
        assert process.poll() is None, "it lives"
    finally:
        process.kill()
        process.wait()


def latencies(client: PolicyClient, count: int) -> list[float]:
    taken = []
    for _ in range(count):
        began = time.monotonic()
        assert client.infer(observation(), deadline_ms=5000).version == "v1"
        taken.append(time.monotonic() - began)
    return taken


def pings(client: PolicyClient, count: int) -> None:
    for _ in range(count):
        client.ping()


@pytest.mark.parametrize("way", WAYS)
def test_a_flood_costs_a_robot_at_most_one_inference(endpoint: str, way: str) -> None:
    control = f"tcp://127.0.0.1:{int(endpoint.rpartition(':')[2]) + 1}"
    with PolicyClient(endpoint, timeout_s=5) as robot, ControlClient(control) as operator:
        latencies(robot, 2)
        before = robot.stats()["resident_bytes"]
        flood = subprocess.Popen([sys.executable, "tests/flood.py", endpoint, way], cwd=ROOT)
        try:
            time.sleep(1.0)
            assert flood.poll() is None
            taken = latencies(robot, 12)
            began = time.monotonic()
            assert operator.ping() == "ready"
            pinged = time.monotonic() - began
            stats = robot.stats()
        finally:
            flood.kill()
            flood.wait()
        assert statistics.median(taken) < 2 * INFERENCE_S + GRACE_S
        assert max(taken) < 2 * INFERENCE_S + GRACE_S + STALL_S
        assert pinged < STALL_S
        assert (stats["resident_bytes"] - before) / 1e6 < MOST_MB
        assert latencies(robot, 2)


@pytest.mark.parametrize("locked", [False, True])
def test_half_open_connections_keep_nobody_out(locked: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(crowd, "MOST", 6)
    known = None
    if locked:
        public, secret = keys.save(keys.new_pair("arm"), tmp_path)
        keys.save(keys.new_pair("server"), tmp_path)
        keys.allow(tmp_path, public, "robot")
        known = ClientKeys.load(secret, tmp_path / "server.key")
    slot = TinySlot(LevelPolicy())
    config = ServeConfig(endpoint="tcp://127.0.0.1:0", drain_s=0.1, keys=str(tmp_path) if locked else "")
    with PolicyServer(config, slot, TinyControl(slot)) as server, ExitStack() as stack:
        robots = []
        for _ in range(3):
            robots.append(stack.enter_context(PolicyClient(server.endpoint, timeout_s=5, keys=known)))
            robots[-1].wait_ready(5)
            for _ in range(8):
                port = int(server.endpoint.rpartition(":")[2])
                half = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                half.send(b"\xff\0\0\0\0\0\0\0\1\x7f\3")
        for robot in robots:
            assert robot.infer(observation()).version == "v1"


def test_an_operator_who_floods_keeps_no_other_out() -> None:
    slot = TinySlot(LevelPolicy())
    config = ServeConfig(endpoint="tcp://127.0.0.1:0", drain_s=0.1)
    with (
        PolicyServer(config, slot, TinyControl(slot, delay_s=0.05)) as server,
        ControlClient(server.control_endpoint, timeout_s=5) as operator,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as flood,
    ):
        flood.linger = 0
        flood.rcvtimeo = 5000
        flood.connect(server.control_endpoint)
        for id in range(200):
            flood.send_multipart(wire.encode(envelope.message("status", id)))
        refused = wire.decode(flood.recv_multipart())
        assert (refused["code"], refused["text"]) == ("busy", "control: 4 commands of this client are waiting already")
        began = time.monotonic()
        assert operator.status()["live"] == "v1"
        assert time.monotonic() - began < 0.05 * 6 + STALL_S


def test_a_message_of_large_frames_without_end_is_ended(endpoint: str) -> None:
    """libzmq has no cap for it: it would take all the memory there is."""
    with PolicyClient(endpoint, timeout_s=5) as robot, ThreadPoolExecutor(1) as pool:
        before = robot.stats()["resident_bytes"]
        taken, most = pool.submit(endless, endpoint, bytes(1 << 20)), 0
        while not taken.done():
            latencies(robot, 1)
            most = max(most, robot.stats()["resident_bytes"] - before)
        assert taken.result() > 0
        assert most < 1e9, "two of the largest messages, and what comes until it is noticed"


def test_a_message_of_small_frames_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "LONGEST_S", 0.5)
    slot = TinySlot(LevelPolicy())
    config = ServeConfig(endpoint="tcp://127.0.0.1:0", drain_s=0.1)
    with PolicyServer(config, slot, TinyControl(slot)) as server, PolicyClient(server.endpoint, timeout_s=5) as robot:
        robot.wait_ready(5)
        assert endless(server.endpoint, b"") > crowd.LITTLE
        assert server._doors.robots.router._crowd.hung_up == 1
        assert robot.infer(observation()).version == "v1"


def test_by_a_path_too_a_message_without_end_is_ended(tmp_path: Path) -> None:
    """There nobody counts bytes, but the process that takes them grows."""
    endpoint = f"ipc://{tmp_path}/robots"
    process = subprocess.Popen([sys.executable, "-c", SERVE, endpoint], cwd=ROOT)
    try:
        with PolicyClient(endpoint, timeout_s=5) as robot, ThreadPoolExecutor(1) as pool:
            robot.wait_ready(20)
            before = robot.stats()["resident_bytes"]
            taken, most = pool.submit(endless, endpoint, bytes(1 << 20)), 0
            while not taken.done():
                latencies(robot, 1)
                most = max(most, robot.stats()["resident_bytes"] - before)
            assert taken.result() > 2 * wire.CAPS.message_bytes
            assert most < 8e9, "what comes in a few looks"
            for _ in range(50):
                if robot.stats()["resident_bytes"] - before < most / 2:
                    break
                time.sleep(0.1)
            assert robot.stats()["resident_bytes"] - before < most / 2, "it is given back"
            assert latencies(robot, 2)
    finally:
        process.kill()
        process.wait()


def test_by_a_path_a_slow_message_without_end_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The process does not grow by much, and a robot that is slow, or silent, is not taken for one that does this."""
    monkeypatch.setattr(crowd, "LOOK_S", 0.05)
    slot = TinySlot(LevelPolicy(delay_s=0.2))  # longer than some looks
    config = ServeConfig(endpoint=f"ipc://{tmp_path}/robots", drain_s=0.1)
    with (
        PolicyServer(config, slot, TinyControl(slot)) as server,
        PolicyClient(server.endpoint, timeout_s=5) as robot,
        PolicyClient(server.endpoint, timeout_s=5) as silent,
        ThreadPoolExecutor(1) as pool,
    ):
        robot.wait_ready(5)
        silent.wait_ready(5)
        taken = pool.submit(endless, server.endpoint, b"", 0.01)
        while not taken.done():
            latencies(robot, 1)
        assert taken.result() > 0
        ended = time.monotonic() + 2.0  # as many looks as it took
        while time.monotonic() < ended:
            latencies(robot, 1)
        assert server._doors.robots.router._crowd.hung_up == 1
        assert latencies(silent, 1)


def test_robots_that_send_much_are_not_taken_for_one(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this one more comes between two looks than a message may have before it is suspected."""
    big = Observation({"front": np.zeros((1000, 1000, 3), np.uint8)}, np.zeros(6, np.float32), "touch the red cube")
    monkeypatch.setattr(crowd, "HELD", 0)
    monkeypatch.setattr(crowd, "LONGEST_S", 0.0)
    slot = TinySlot(LevelPolicy())
    config = ServeConfig(endpoint="tcp://127.0.0.1:0", drain_s=0.1)
    with PolicyServer(config, slot, TinyControl(slot)) as server, PolicyClient(server.endpoint, timeout_s=5) as robot:
        server.wait_ready()
        ended = time.monotonic() + 1.5
        while time.monotonic() < ended:
            robot.infer(big)
        assert server._doors.robots.router._crowd.hung_up == 0


def test_more_connections_than_allowed_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "MOST", 3)
    slot = TinySlot(LevelPolicy())
    config = ServeConfig(endpoint="tcp://127.0.0.1:0", drain_s=0.1)
    with PolicyServer(config, slot, TinyControl(slot)) as server, ExitStack() as stack:
        robots = [stack.enter_context(PolicyClient(server.endpoint, timeout_s=5)) for _ in range(3)]
        for robot in robots:
            robot.wait_ready(5)
        with PolicyClient(server.endpoint, timeout_s=0.5) as late, pytest.raises(ServerLost):
            pings(late, 20)  # the first may still be answered before its connection is closed
        for robot in robots:
            assert robot.infer(observation()).version == "v1"
        robots[0].close()
        with PolicyClient(server.endpoint, timeout_s=2) as late:
            assert late.wait_ready(10).version == "v1"
