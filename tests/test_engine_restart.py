"""An engine that crashes is restarted once, and says so; a server whose engine crashes again ends."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from serving import LevelPolicy, TinyControl, TinySlot, observation

from hotpolicy.runtime.client import ControlClient, PolicyClient
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.errors import EngineFault, HotpolicyError
from hotpolicy.runtime.messages import Observation
from hotpolicy.runtime.server import PolicyServer
from hotpolicy.runtime.serving.inference import RAISED


class Fragile(LevelPolicy):
    """Its thread dies of one task, is stuck in another, and raises for a third until it is loaded anew."""

    def __init__(self, level: float = 1.0):
        super().__init__(level)
        self.let_go = threading.Event()

    def infer(self, observations: Sequence[Observation], noise: np.ndarray | None = None) -> np.ndarray:
        tasks = {observation.task for observation in observations}
        if "die" in tasks:
            raise SystemExit("the library gave up")
        if "hang" in tasks:
            self.let_go.wait()
        return super().infer(observations, noise)


class Reloading(TinySlot):
    """Loads the next level anew."""

    failing = ""

    def reload(self) -> str:
        super().reload()
        if self.failing:
            raise EngineFault(self.failing)
        self.live = Fragile(self.live.level + 1)
        return self.live.version


class Site:
    def __init__(self, **config: float) -> None:
        self.policy = Fragile()
        self.slot = Reloading(self.policy)
        self.control = TinyControl(self.slot)
        self.server = PolicyServer(ServeConfig(endpoint="tcp://127.0.0.1:0", **config), self.slot, self.control)
        self.server.start()
        self.server.wait_ready(10)

    def client(self) -> PolicyClient:
        return PolicyClient(self.server.endpoint, timeout_s=20)

    def ask(self, task: str = "", client: PolicyClient | None = None) -> str:
        with client or self.client() as asking:
            return asking.infer(shown(task)).version

    def state(self, state: str) -> None:
        deadline = time.monotonic() + 10
        while self.server.state != state:
            assert time.monotonic() < deadline, self.server.state
            time.sleep(0.01)


def shown(task: str) -> Observation:
    seen = observation()
    return Observation(seen.images, seen.state, task)


@pytest.fixture
def start() -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def begin(**config: float) -> Site:
        sites.append(Site(drain_s=0.2, **config))
        return sites[-1]

    yield begin
    for site in sites:
        site.policy.let_go.set()
        site.server.stop()


def test_an_engine_whose_thread_dies_is_restarted(start: Callable[..., Site], caplog: pytest.LogCaptureFixture) -> None:
    site = start()
    with pytest.raises(EngineFault, match="crashed: SystemExit: the library gave up"):
        site.ask("die")
    site.state("ready")
    assert site.ask() == "v2"
    with site.client() as client:
        stats = client.stats()
        assert client.ping() == "ready"
    assert (stats["restarts"], stats["state"], site.slot.reloads) == (1, "ready", 1)
    with ControlClient(site.server.control_endpoint) as operator:
        assert operator.status()["server"]["restarts"] == 1
    assert "the engine crashed and is restarted" in caplog.text


def test_what_waits_behind_a_crash_is_answered(start: Callable[..., Site]) -> None:
    site = start(longest_inference_s=2)
    with site.client() as stuck, site.client() as waiting, site.client() as later:
        for client in (stuck, waiting, later):
            client.ping()  # connects
        stuck.ask(shown("hang"))
        time.sleep(0.2)
        waiting.ask(shown(""))
        for client in (stuck, waiting):
            with pytest.raises(EngineFault, match="one batch computed for longer than 2 s"):
                client.poll(15)
        later.ask(shown(""))
        chunk = later.poll(15)
        assert chunk is not None
        assert chunk.version == "v2"
        assert site.server.stats()["counts"]["engine_fault"] == 2
        site.policy.let_go.set()  # the thread that was left behind comes back, and nobody hears of it
        time.sleep(0.2)
        assert stuck.infer(shown("")).version == "v2"
        assert stuck.dropped == {}
    assert not site.server.stuck


def test_a_second_crash_ends_the_server_loudly(start: Callable[..., Site], caplog: pytest.LogCaptureFixture) -> None:
    site = start()
    for state in ("ready", "failed"):
        with pytest.raises(EngineFault, match="crashed"):
            site.ask("die")
        site.state(state)
    assert "SystemExit: the library gave up" in site.server.failure
    with pytest.raises(EngineFault, match="crashed"):
        site.ask()
    assert "failed: the engine crashed" in caplog.text


def test_a_version_that_cannot_be_loaded_anew_ends_the_server(start: Callable[..., Site]) -> None:
    site = start()
    site.slot.failing = "CUDA error: unspecified launch failure"
    with pytest.raises(EngineFault, match="crashed"):
        site.ask("die")
    site.state("failed")
    assert site.server.failure.endswith("EngineFault: CUDA error: unspecified launch failure")


def test_a_policy_that_raises_whatever_it_is_asked_is_loaded_anew_once(start: Callable[..., Site]) -> None:
    site = start()
    for n in range(3 * RAISED):
        with pytest.raises(EngineFault):
            site.ask("fail")
        if n == RAISED - 2:
            assert site.slot.reloads == 0
            assert site.ask() == "v1"  # a success in between: not the engine's fault
    site.state("ready")
    assert (site.ask(), site.slot.reloads) == ("v2", 1)


def test_a_long_inference_is_not_a_stuck_one(start: Callable[..., Site]) -> None:
    site = start(longest_inference_s=30)
    site.policy.delay_s = 2.5
    assert site.ask() == "v1"
    assert site.server.stats()["restarts"] == 0


PROCESS = """
import sys
sys.path.insert(0, "tests")
from test_engine_restart import Fragile, Reloading
from serving import TinyControl
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.errors import HotpolicyError
from hotpolicy.runtime.server import PolicyServer
from hotpolicy.launch.serving.server import serve_until_it_ends

slot = Reloading(Fragile())
config = ServeConfig(endpoint=sys.argv[1], drain_s=1, longest_inference_s=2)
serve_until_it_ends(PolicyServer(config, slot, TinyControl(slot)))
"""


@pytest.mark.parametrize("task", ["die", "hang"])
def test_a_process_whose_engine_crashed_twice_exits_with_4(tmp_path: Path, task: str) -> None:
    """Also when a thread is stuck for good; the service manager starts it anew."""
    endpoint = f"ipc://{tmp_path}/s"
    root = Path(__file__).parent.parent
    process = subprocess.Popen([sys.executable, "-c", PROCESS, endpoint], cwd=root, stderr=subprocess.PIPE, text=True)
    with PolicyClient(endpoint, timeout_s=20) as client:
        client.wait_ready(20)
        for _ in range(2):
            with pytest.raises(HotpolicyError, match="crashed"):
                client.infer(shown(task))
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 4
    assert "the engine crashed" in errors
