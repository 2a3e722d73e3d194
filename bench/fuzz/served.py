"""The server that is fuzzed, a process of its own with every front; and right clients of every dialect beside it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from corpus import JOINTS, PICTURE, pack_openpi
from gr00t_client import Gr00tClient
from serving import SPEC, observation
from websockets.sync.client import connect

from hotpolicy.runtime.client import ControlClient, PolicyClient
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.engine.echo_engine import seal_echo
from hotpolicy.runtime.fronts.settings import Gr00tSettings, OpenpiSettings
from hotpolicy.runtime.server import PolicyServer
from hotpolicy.runtime.serving.control import Control
from hotpolicy.runtime.slot import Slot
from hotpolicy.runtime.store import Store
from hotpolicy.runtime.versions.loader import load_with

PAUSE_S = 0.05  # of a right client between two calls


def serve(folder: Path) -> None:
    """In the foreground, until SIGTERM. Where it listens is written to a file."""
    store = Store(folder / "store")
    store.add(seal_echo(folder / "made", 1.0, spec=SPEC).folder)
    slot = Slot(store, load_with("echo"))
    front = {"gr00t": Gr00tSettings("tcp://127.0.0.1:0"), "openpi": OpenpiSettings(port=0, connections=64)}
    config = ServeConfig(endpoint="tcp://127.0.0.1:0", drain_s=0.2, **front)  # type: ignore[arg-type]
    server = PolicyServer(config, slot, Control(slot, store))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    with server:
        server.wait_ready()
        found = {"native": server.endpoint, "control": server.control_endpoint, "gr00t": server.gr00t_endpoint}
        found["openpi"] = f"ws://127.0.0.1:{server.openpi_port}"
        (folder / "fresh").write_text(json.dumps(found))
        os.rename(folder / "fresh", folder / "endpoints")
        stop.wait()
        print("state at the end:", server.state, flush=True)


class Served:
    def __init__(self, folder: Path):
        self._log = folder / "server.log"
        command = [sys.executable, str(Path(__file__).with_name("run.py")), "--serve", str(folder)]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        while not (folder / "endpoints").exists():
            if self.process.poll() is not None:
                raise SystemExit(self._log.read_text())
            time.sleep(0.05)
        self.endpoints: dict[str, str] = json.loads((folder / "endpoints").read_text())

    def resident_mb(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def received(self, front: str) -> int:
        """Messages that this front has handled, right ones too. A websocket's are counted by its front."""
        with PolicyClient(self.endpoints["native"], timeout_s=10) as client:
            stats = client.stats()
        return int(stats["fronts"]["openpi"].get("asked", 0) if front == "openpi" else stats["counts"]["received"])

    def settled(self, front: str) -> int:
        """How many it has handled, once that does not change any more, or hardly."""
        count = -100
        while (received := self.received(front)) > count + 20:  # right clients go on
            count = received
            time.sleep(0.3)
        return received

    def faults(self) -> int:
        """Exceptions of its own that the server has logged."""
        return self._log.read_text().count("Traceback (most recent call last)")

    def state(self) -> str:
        with PolicyClient(self.endpoints["native"], timeout_s=10) as client:
            return client.ping()

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(20)


@dataclass
class Right:
    """A right client's calls."""

    took_ms: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


class RightClients:
    """One of each dialect, each calling again and again in a thread of its own."""

    def __init__(self, endpoints: dict[str, str]):
        self._ended = threading.Event()
        self._stack = ExitStack()
        enter = self._stack.enter_context
        robot = enter(PolicyClient(endpoints["native"], timeout_s=10))
        operator = enter(ControlClient(endpoints["control"], timeout_s=10))
        gr00t = enter(Gr00tClient(endpoints["gr00t"]))
        openpi = enter(connect(endpoints["openpi"], compression=None, max_size=None, proxy=None))
        openpi.recv(timeout=10)
        asked = {"observation/front": PICTURE, "observation/state": np.zeros(JOINTS), "prompt": "lift"}
        seen = msgpack.packb(asked, default=pack_openpi)
        rows = {"video.front": PICTURE[None], "state.joints": np.zeros((1, JOINTS)), "task": ["lift"]}
        rows["annotation.human.action.task_description"] = ["lift"]

        def talk() -> None:
            openpi.send(seen)
            if isinstance(reply := openpi.recv(timeout=10), str):
                raise RuntimeError(reply)

        calls: dict[str, Callable[[], Any]] = {
            "native": lambda: robot.infer(observation()),
            "control": operator.status,
            "gr00t": lambda: gr00t.call("get_action", rows),
            "openpi": talk,
        }
        self.calls = {name: Right() for name in calls}
        self._threads = [threading.Thread(target=self._run, args=(self.calls[n], call)) for n, call in calls.items()]
        for thread in self._threads:
            thread.start()

    def _run(self, right: Right, call: Callable[[], Any]) -> None:
        while not self._ended.wait(PAUSE_S):
            began = time.monotonic()
            try:
                call()
            except Exception as error:  # noqa: BLE001, whatever it is, it is counted
                right.failed.append(f"{type(error).__name__}: {error}")
            right.took_ms.append(1000 * (time.monotonic() - began))

    def close(self) -> dict[str, Right]:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        with contextlib.suppress(OSError):
            self._stack.close()
        return self.calls


def right_clients(endpoints: dict[str, str], pipe: Any) -> None:
    """A process of its own, so that the fuzzer's work is none of its latency; until something is sent to the pipe."""
    clients = RightClients(endpoints)
    pipe.send("ready")
    pipe.recv()
    pipe.send({name: (right.took_ms, right.failed) for name, right in clients.close().items()})


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Served]:
    server = Served(folder)
    try:
        yield server
    finally:
        server.end()
