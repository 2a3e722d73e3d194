"""Who receives when: the thread that computes while it is idle, its deputy meanwhile, and nobody once it is over."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from serving import LevelPolicy, TinyControl, TinySlot, observation

from hotpolicy.runtime.client import PolicyClient
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.messages import Observation
from hotpolicy.runtime.server import PolicyServer
from hotpolicy.runtime.serving import reception
from hotpolicy.runtime.serving.bell import Bell

LATE_S = 0.5  # of a busy machine


class Sometimes(LevelPolicy):
    """Answers at once, but for what it is told to take its time for."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()
        self.checkers: set[int] = set()
        self.computing = threading.Event()

    def check(self, observation: Observation) -> None:
        self.checkers.add(threading.get_ident())

    def infer(self, observations: Sequence[Observation], noise: np.ndarray | None = None) -> np.ndarray:
        self.threads.add(threading.get_ident())
        if observations[0].task == "slow":
            self.computing.set()
            time.sleep(1.0)
        return super().infer(observations, noise)


@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_a_ping_is_answered_while_a_batch_takes_longer_than_all_before_it(scheme: str, tmp_path: Path) -> None:
    policy = Sometimes()
    slot = TinySlot(policy)
    endpoint = "tcp://127.0.0.1:0" if scheme == "tcp" else f"ipc://{tmp_path}/robots"
    slow = Observation(observation().images, observation().state, "slow")
    with (
        PolicyServer(ServeConfig(endpoint=endpoint, drain_s=0.1), slot, TinyControl(slot)) as server,
        PolicyClient(server.endpoint, timeout_s=5) as robot,
        PolicyClient(server.endpoint, timeout_s=5) as other,
    ):
        server.wait_ready()
        for _ in range(50):  # quick ones: they are computed without a deputy
            robot.infer(observation())
        other.ping()
        for _ in range(2):
            policy.computing.clear()
            robot.ask(slow)
            assert policy.computing.wait(5)
            began = time.monotonic()
            assert other.ping() == "ready"
            assert time.monotonic() - began < LATE_S
            assert robot.poll(5) is not None
        assert len(policy.threads) == 1, "one thread computes, whoever receives"


def test_an_idle_server_receives_and_computes_in_one_thread() -> None:
    policy = Sometimes()
    slot = TinySlot(policy)
    with (
        PolicyServer(ServeConfig(endpoint="tcp://127.0.0.1:0", drain_s=0.1), slot, TinyControl(slot)) as server,
        PolicyClient(server.endpoint, timeout_s=5) as robot,
    ):
        server.wait_ready()
        robot.infer(observation())
        time.sleep(0.2)  # it is idle
        policy.checkers.clear()
        for _ in range(20):
            robot.infer(observation())
            time.sleep(0.002)
        assert policy.threads & policy.checkers


def test_the_deputy_sleeps_when_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reception, "CALM", 3)
    slot = TinySlot(LevelPolicy())
    with (
        PolicyServer(ServeConfig(endpoint="tcp://127.0.0.1:0", drain_s=0.1), slot, TinyControl(slot)) as server,
        PolicyClient(server.endpoint, timeout_s=5) as robot,
    ):
        server.wait_ready()
        for _ in range(20):
            robot.infer(observation())
        for _ in range(100):
            if not server._reception._watched:
                break
            time.sleep(0.05)
        assert not server._reception._watched
        assert robot.infer(observation()).version == "v1"


def test_a_bell_that_is_closed_rings_nobody() -> None:
    bell = Bell()
    bell.close()
    other = Bell()  # takes the descriptors
    bell.ring()
    bell.close()
    assert not select.select([other.fd], [], [], 0)[0]
    other.ring()
    assert select.select([other.fd], [], [], 0)[0]
    other.close()
