"""One request after another: how long each takes, and what it costs in CPU on both sides (Linux)."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zmq
from null_policy import checksum

from hotpolicy.runtime.messages import Observation

Call = Callable[[Observation], float | None]  # one request; the checksum in its answer, None where it has none
Shapes = Mapping[str, tuple[int, ...]]


def own_memory() -> Callable[[Shapes], dict[str, np.ndarray]]:
    """What a camera writes its pictures into: one buffer for each, used again for the next."""
    buffers: dict[str, np.ndarray] = {}

    def of(shapes: Shapes) -> dict[str, np.ndarray]:
        if not buffers:
            buffers.update({name: np.empty(shape, np.uint8) for name, shape in shapes.items()})
        return buffers

    return of


class Asker(NamedTuple):
    call: Call
    buffers: Callable[[Shapes], dict[str, np.ndarray]]

    def captured(self, seen: Observation) -> Observation:
        """The observation as it is when cameras have just written its pictures where they are sent from."""
        buffers = self.buffers({name: image.shape for name, image in seen.images.items()})
        for name, image in seen.images.items():
            np.copyto(buffers[name], image)
        return replace(seen, images=buffers)


def cpu_s(pid: int) -> float:
    """CPU seconds of all threads of a process."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def measure(asker: Asker, seen: list[Observation], requests: int, pid: int) -> dict[str, Any]:
    """A closed loop of requests: latencies in us, CPU per request in us on both sides, wrong answers. Pictures are
    captured before, and whether an answer is right is looked at after it was timed."""
    expected = [checksum(observation) for observation in seen]
    for observation in seen:
        asker.call(asker.captured(observation))  # connections, caches, page faults
    latencies, wrong, client = [], 0, 0.0
    server = cpu_s(pid)
    for number in range(requests):
        observation = asker.captured(seen[number % len(seen)])
        began, cpu = time.perf_counter(), time.process_time()
        answer = asker.call(observation)
        latencies.append(1e6 * (time.perf_counter() - began))
        client += time.process_time() - cpu
        wrong += answer is not None and answer != expected[number % len(seen)]
    return {
        "latencies": latencies,
        "server_cpu": 1e6 * (cpu_s(pid) - server) / requests,
        "client_cpu": 1e6 * client / requests,
        "wrong": wrong,
    }


def summary(rounds: list[dict[str, Any]], beside: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over rounds; `x` is over raw tcp of the same round."""
    every = sorted(latency for one in rounds for latency in one["latencies"])
    pairs = [
        (quantiles(one["latencies"]), quantiles(other["latencies"])) for one, other in zip(rounds, beside, strict=True)
    ]
    cpus = [one["server_cpu"] / other["server_cpu"] for one, other in zip(rounds, beside, strict=True)]
    return {
        "requests": len(every),
        "p10": statistics.median(mine[0] for mine, _ in pairs),
        "p50": statistics.median(mine[1] for mine, _ in pairs),
        "p99": every[int(0.99 * len(every))],
        "x_p10": statistics.median(mine[0] / theirs[0] for mine, theirs in pairs),
        "x_p50": statistics.median(mine[1] / theirs[1] for mine, theirs in pairs),
        "server_cpu": statistics.median(one["server_cpu"] for one in rounds),
        "client_cpu": statistics.median(one["client_cpu"] for one in rounds),
        "x_server_cpu": statistics.median(cpus),
        "wrong": sum(one["wrong"] for one in rounds),
    }


def quantiles(latencies: list[float]) -> tuple[float, float]:
    ordered = sorted(latencies)
    return ordered[len(ordered) // 10], ordered[len(ordered) // 2]


def machine() -> dict[str, Any]:
    return {
        "cpu": next((line.split(": ")[1] for line in cpuinfo() if line.startswith("model name")), platform.machine()),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "pyzmq": zmq.__version__,
        "libzmq": zmq.zmq_version(),
        "allocator_tuned": any(name.startswith("MALLOC_") for name in os.environ),
    }


def cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
