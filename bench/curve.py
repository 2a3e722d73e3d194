"""What keys cost: the same requests to two servers, one of them asking for keys, by turns over loopback tcp.

python bench/curve.py --calls 300
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from null_policy import SIZES, NullControl, NullSlot, observations

from hotpolicy.runtime import keys
from hotpolicy.runtime.client import PolicyClient
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.keys import ClientKeys
from hotpolicy.runtime.server import PolicyServer

CONTEXT = multiprocessing.get_context("spawn")


def serve(size: str, folder: str, port: int) -> None:
    address = f"tcp://127.0.0.1:{port}"
    PolicyServer(ServeConfig(endpoint=address, keys=folder), NullSlot(size), NullControl()).run()


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with zmq.Context() as context, context.socket(zmq.REP) as probe:
        return probe.bind_to_random_port("tcp://127.0.0.1", min_port=20000, max_port=40000)


def measure(size: str, calls: int, folder: Path) -> None:
    public, secret = keys.save(keys.new_pair("robot"), folder / size)
    server = folder / size / "server"
    keys.save(keys.new_pair("server"), server)
    keys.allow(server, public, "robot")
    known = ClientKeys.load(secret, server / "server.key")
    took: dict[str, list[float]] = {"plain": [], "keys": []}
    clients: dict[str, PolicyClient] = {}
    processes: dict[str, Any] = {}
    try:
        for name, given in (("plain", ""), ("keys", str(server))):
            port = free_port()
            processes[name] = CONTEXT.Process(target=serve, args=(size, given, port), daemon=True)
            processes[name].start()
            endpoint = f"tcp://127.0.0.1:{port}"
            clients[name] = PolicyClient(endpoint, timeout_s=30, keys=known if given else None)
            clients[name].wait_ready(30)
        seen = observations(size)[0]
        spent = {name: cpu_s(process.pid) for name, process in processes.items()}
        for call in range(calls):
            for name, client in clients.items():
                began = time.monotonic()
                client.infer(seen)
                if call >= calls // 10:
                    took[name].append(1000 * (time.monotonic() - began))
        spent = {name: 1000 * (cpu_s(process.pid) - spent[name]) / calls for name, process in processes.items()}
    finally:
        for client in clients.values():
            client.close()
        for process in processes.values():
            process.terminate()
    p50 = {name: float(np.median(samples)) for name, samples in took.items()}
    figures = [f"{p50[name]:.2f} ({min(took[name]):.2f}), {spent[name]:.2f} CPU" for name in took]
    print(f"{size:10s} {figures[0]:26s} {figures[1]:26s} {p50['keys'] / p50['plain']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=300)
    calls = parser.parse_args().calls
    print(f"{'':10s} {'plain, ms':26s} {'keys, ms':26s} ratio   (p50, least, CPU of the server for a call)")
    with tempfile.TemporaryDirectory(prefix="curve") as folder:
        for size in SIZES:
            measure(size, calls, Path(folder))


if __name__ == "__main__":
    main()
