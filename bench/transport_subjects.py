"""What bench/transport.py compares: servers in processes of their own, and a client of each."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from closed_loop import Asker, cpu_s, own_memory
from null_policy import HORIZON, JOINTS, OBSERVATIONS, NullControl, NullSlot

from hotpolicy.runtime.client import PolicyClient
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.messages import Observation
from hotpolicy.runtime.server import PolicyServer

SUBJECTS = ("raw-tcp", "native-tcp", "raw-ipc", "native-ipc", "shared-ipc", "captured-ipc")
OPENPI = ("openpi-client==0.1.2", "openpi-server==0.1.0", "typing_extensions")  # the last they import, and do not name
CONTEXT = multiprocessing.get_context("spawn")


def serve_native(size: str, endpoint: str) -> None:
    PolicyServer(ServeConfig(endpoint=endpoint, control=f"{control_of(endpoint)}"), NullSlot(size), NullControl()).run()


def control_of(endpoint: str) -> str:
    return f"{endpoint}.control" if endpoint.startswith("ipc") else "tcp://127.0.0.1:0"


def serve_raw(size: str, endpoint: str) -> None:
    reply = np.zeros((HORIZON, JOINTS), np.float32).tobytes()
    router = zmq.Context().socket(zmq.ROUTER)
    router.bind(endpoint)
    while True:
        frames = router.recv_multipart(copy=False)
        router.send_multipart([frames[0].bytes, b"", b"header", reply], copy=False)


@contextmanager
def raw_client(endpoint: str) -> Iterator[Asker]:
    header = b"h" * 180
    context: zmq.Context[zmq.Socket[Any]] = zmq.Context.instance()
    with context.socket(zmq.REQ) as socket:
        socket.linger = 0
        socket.connect(endpoint)

        def call(observation: Observation) -> None:
            frames: list[Any] = [header, *observation.images.values()]
            socket.send_multipart(frames, copy=False)
            socket.recv_multipart(copy=False)

        yield Asker(call, own_memory())


@contextmanager
def native_client(endpoint: str, shared: bool = False, captured: bool = False) -> Iterator[Asker]:
    with PolicyClient(endpoint, timeout_s=30.0, shared_memory=shared) as client:
        client.wait_ready(30)
        buffers = client.image_buffers if captured else own_memory()
        yield Asker(lambda observation: client.infer(observation).actions.item(0), buffers)


SERVE = {"raw": serve_raw, "native": serve_native, "shared": serve_native, "captured": serve_native}
CLIENT: dict[str, Callable[[str], AbstractContextManager[Asker]]] = {
    "raw": raw_client,
    "native": native_client,
    "shared": partial(native_client, shared=True),
    "captured": partial(native_client, shared=True, captured=True),
}


class Openpi:
    """Their server and client, each a process of its own."""

    def __init__(self, venv: Path, size: str):
        if not (venv / "bin" / "python").exists():
            subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
            subprocess.run([str(venv / "bin" / "pip"), "install", "--quiet", *OPENPI], check=True)
        peer, port = [str(venv / "bin" / "python"), str(Path(__file__).with_name("openpi_peer.py"))], str(free_port())
        inherited = {**os.environ, "NO_PROXY": "127.0.0.1", "PYTHONPATH": ""}
        pipe = subprocess.PIPE
        self._server = subprocess.Popen([*peer, "serve", port], env=inherited, stderr=subprocess.DEVNULL)
        self._client = subprocess.Popen([*peer, "ask", port, size], env=inherited, stdin=pipe, stdout=pipe, text=True)
        self.ask(OBSERVATIONS)  # it is there, and warm

    def ask(self, requests: int) -> dict[str, Any]:
        assert self._client.stdin
        assert self._client.stdout
        server = cpu_s(self._server.pid)
        self._client.stdin.write(f"{requests}\n")
        self._client.stdin.flush()
        found = json.loads(self._client.stdout.readline())
        asked = requests + OBSERVATIONS  # with those that warm it up
        return {**found, "server_cpu": 1e6 * (cpu_s(self._server.pid) - server) / asked}

    def close(self) -> None:
        self._client.communicate()
        self._server.terminate()
        self._server.wait()


def address(subject: str, folder: str, size: str) -> str:
    return f"ipc://{folder}/{subject}-{size}" if subject.endswith("ipc") else f"tcp://127.0.0.1:{free_port()}"


def free_port() -> int:
    with zmq.Context() as context, context.socket(zmq.REP) as probe:
        return int(probe.bind_to_random_port("tcp://127.0.0.1"))


def start(subject: str, size: str, endpoint: str) -> BaseProcess:
    process = CONTEXT.Process(target=SERVE[subject.split("-")[0]], args=(size, endpoint), daemon=True)
    process.start()
    return process
