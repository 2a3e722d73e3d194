"""What the policy server costs over a bare ZeroMQ socket: same bytes, same run, same machine.

    python bench/transport.py [--rounds 5] [--requests 150] [--clients 8] [--openpi VENV] [--out transport.json]

A null policy answers 50x7 float32 actions; S is one 224x224x3 camera, L three of 640x480x3. `raw` is pyzmq REQ/ROUTER
multipart with copy=False that parses nothing; `native` is PolicyServer and PolicyClient as robots use them, checks,
scheduler and inference thread included; `shared` is the same with the pictures in shared memory. `--openpi` adds
openpi's own server and client from PyPI, in a virtual environment that is made where it is not there. Rounds are
interleaved and ratios are taken within a round, so that a busy machine disturbs all alike. Every answer but raw's
carries a checksum of its observation, and each is verified. CPU is the process's own, per request, from /proc (Linux).
Last, what JPEG costs on pictures of the virtual arm; `noise` is a sensor's, in grey levels.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from hotpolicy.runtime import pictures
from hotpolicy.runtime.client import PolicyClient
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.messages import CameraSpec, Joint, Observation, RobotSpec
from hotpolicy.runtime.server import PolicyServer

HORIZON, JOINTS = 50, 7
SIZES = {"S": [("front", 224, 224)], "L": [(name, 480, 640) for name in ("front", "left", "right")]}
SUBJECTS = ("raw-tcp", "native-tcp", "raw-ipc", "native-ipc", "shared-ipc")
OPENPI = ("openpi-client==0.1.2", "openpi-server==0.1.0", "typing_extensions")  # the last they import, and do not name
QUALITIES = (80, 95)
OBSERVATIONS = 8  # different ones, in turn, so that no cache flatters anybody

Call = Callable[[Observation], bool]  # one request; whether its answer was right


def robot(size: str) -> RobotSpec:
    joints = tuple(Joint(f"joint_{n}.pos", "deg", -180.0, 180.0) for n in range(JOINTS))
    return RobotSpec(joints, tuple(CameraSpec(*camera) for camera in SIZES[size]), rate_hz=50.0)


def observations(size: str) -> list[Observation]:
    random = np.random.default_rng(os.getpid())
    shapes = {name: (height, width, 3) for name, height, width in SIZES[size]}
    return [
        Observation(
            images={name: random.integers(0, 256, shape, np.uint8) for name, shape in shapes.items()},
            state=random.standard_normal(JOINTS).astype(np.float32),
            task="pick up the red cube and put it into the box",
        )
        for _ in range(OBSERVATIONS)
    ]


def checksum(observation: Observation) -> float:
    """Exact in float32: from the first, middle and last byte of every image, weighted by camera. It is computed
    twice inside the time measured, so it is no more than it must be to tell observations and cameras apart."""
    total = 0
    for number, image in enumerate(observation.images.values(), 1):
        total += number * (image.item(0) + 256 * image.item(image.size // 2)) + 65536 * (image.item(-1) & 31)
    return float(total)


class NullPolicy:
    """Computes nothing but the checksum."""

    version, digest, horizon = "null", "0" * 64, HORIZON

    def __init__(self, size: str):
        self.spec = robot(size)

    def check(self, observation: Observation) -> None:
        pass

    def infer(self, observations: Sequence[Observation], noise: np.ndarray | None = None) -> np.ndarray:
        actions = np.zeros((len(observations), HORIZON, JOINTS), np.float32)
        for row, observation in zip(actions, observations, strict=True):
            row[0, 0] = checksum(observation)
        return actions


class NullSlot:
    previous = staged = None

    def __init__(self, size: str):
        self.live = NullPolicy(size)

    def policy_for(self, session: str, boundary: str, episode: int) -> NullPolicy:
        return self.live

    def report_latency(self, version: str, ms: float) -> None:
        pass

    def report_fault(self, version: str) -> None:
        raise RuntimeError("the null policy failed")

    def report_batch(self, version: str, actions: np.ndarray, ms: float, waited_ms: float) -> None:
        pass

    def reload(self) -> str:
        raise RuntimeError("the null policy crashed")

    def figures(self) -> dict[str, Any]:
        return {}

    def forget(self, session: str) -> None:
        pass


class NullControl:
    def handle(self, message: dict[str, Any]) -> dict[str, Any]:
        return {}


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
def raw_client(endpoint: str) -> Iterator[Call]:
    header = b"h" * 180
    with zmq.Context.instance().socket(zmq.REQ) as socket:
        socket.linger = 0
        socket.connect(endpoint)

        def call(observation: Observation) -> bool:
            socket.send_multipart([header, *observation.images.values()], copy=False)
            socket.recv_multipart(copy=False)
            return True

        yield call


@contextmanager
def native_client(endpoint: str, shared: bool = False) -> Iterator[Call]:
    with PolicyClient(endpoint, timeout_s=30.0, shared_memory=shared) as client:
        client.wait_ready(30)
        yield lambda observation: float(client.infer(observation).actions[0, 0]) == checksum(observation)


SERVE = {"raw": serve_raw, "native": serve_native, "shared": serve_native}
CLIENT = {"raw": raw_client, "native": native_client, "shared": partial(native_client, shared=True)}


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


def cpu_s(pid: int) -> float:
    """CPU seconds of all threads of a process."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def measure(call: Call, seen: list[Observation], requests: int, pid: int) -> dict[str, Any]:
    """A closed loop of requests: latencies in us, CPU per request in us on both sides, wrong answers."""
    for observation in seen:
        call(observation)  # connections, caches, page faults
    latencies, wrong = [], 0
    server, client = cpu_s(pid), time.process_time()
    for number in range(requests):
        began = time.perf_counter()
        right = call(seen[number % len(seen)])
        latencies.append(1e6 * (time.perf_counter() - began))
        wrong += not right
    return {
        "latencies": latencies,
        "server_cpu": 1e6 * (cpu_s(pid) - server) / requests,
        "client_cpu": 1e6 * (time.process_time() - client) / requests,
        "wrong": wrong,
    }


def load(endpoint: str, size: str, seconds: float, results: Any) -> None:
    """One of several client processes at full rate."""
    seen, wrong, count, slowest = observations(size), 0, 0, 0.0
    with native_client(endpoint) as call:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.monotonic()
            wrong += not call(seen[count % len(seen)])
            slowest = max(slowest, time.monotonic() - began)
            count += 1
    results.put((count, wrong, slowest))


def many(endpoint: str, size: str, clients: int, seconds: float) -> dict[str, Any]:
    results = CONTEXT.Queue()
    processes = [CONTEXT.Process(target=load, args=(endpoint, size, seconds, results)) for _ in range(clients)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    total = sum(count for count, _, _ in answers)
    return {
        "clients": clients,
        "answered": total,
        "wrong": sum(wrong for _, wrong, _ in answers),
        "slowest_client": min(count for count, _, _ in answers),
        "fastest_client": max(count for count, _, _ in answers),
        "slowest_ms": 1000 * max(slowest for _, _, slowest in answers),
        "per_s": total / seconds,
    }


CONTEXT = multiprocessing.get_context("spawn")


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


def run(rounds: int, requests: int, clients: int, seconds: float, openpi: Path | None) -> dict[str, Any]:
    report: dict[str, Any] = {"machine": machine(), "rounds": rounds, "requests": requests, "sizes": {}, "many": {}}
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            endpoints = {subject: address(subject, folder, size) for subject in SUBJECTS}
            servers = {subject: start(subject, size, endpoint) for subject, endpoint in endpoints.items()}
            try:
                report["sizes"][size] = interleaved(size, endpoints, servers, rounds, requests, openpi)
                if clients:
                    report["many"][size] = many(endpoints["native-tcp"], size, clients, seconds)
            finally:
                for server in servers.values():
                    server.terminate()
                    server.join()
    report["jpeg"] = jpeg(rounds, requests)
    return report


def interleaved(
    size: str,
    endpoints: dict[str, str],
    servers: dict[str, BaseProcess],
    rounds: int,
    requests: int,
    openpi: Path | None,
) -> dict[str, dict[str, float]]:
    seen, measured = observations(size), {subject: [] for subject in SUBJECTS}  # type: ignore[var-annotated]
    peer = Openpi(openpi, size) if openpi else None
    for turn in range(rounds):
        for subject in SUBJECTS if turn % 2 else reversed(SUBJECTS):
            with CLIENT[subject.split("-")[0]](endpoints[subject]) as call:
                measured[subject].append(measure(call, seen, requests, servers[subject].pid or 0))
        if peer:
            measured.setdefault("openpi", []).append(peer.ask(requests))
    if peer:
        peer.close()
    return {subject: summary(rounds, measured["raw-tcp"]) for subject, rounds in measured.items()}


def pictures_of_the_arm(noise: float) -> list[Observation]:
    """The virtual arm's table, 640x480, as three cameras with noise of their own; `noise` is its standard deviation."""
    from hotpolicy.robots.sim.scene import COLOURS, Scene  # late: nothing else here needs a simulator

    scene, random = Scene(image_size=640), np.random.default_rng(0)
    state = np.zeros(JOINTS, np.float32)
    taken = []
    for turn in range(OBSERVATIONS):
        cubes = {colour: (0.2 + 0.02 * n, 0.05 * n - 0.12, 0.3 * turn) for n, colour in enumerate(COLOURS)}
        scene.reset(np.array([0.1 * turn, 0.2, 1.0, 0.5, 0.0, 0.02]), cubes)
        picture = scene.image()[80:560].astype(np.float32)
        images = {
            name: np.clip(picture + random.normal(0, noise, picture.shape), 0, 255).astype(np.uint8)
            for name, _, _ in SIZES["L"]
        }
        taken.append(Observation(images, state, "pick up the red cube and put it into the box"))
    return taken


def jpeg(rounds: int, requests: int) -> list[dict[str, Any]]:
    """What three pictures of the virtual arm cost as JPEG: encoding, decoding, bytes and error of one, and the round
    trip over tcp beside the same three as they are, in rounds interleaved."""
    endpoint, rows = address("native-tcp", "", "L"), []
    server = start("native-tcp", "L", endpoint)
    try:
        for noise in (0.0, 5.0):
            seen, trips = pictures_of_the_arm(noise), {quality: [] for quality in (0, *QUALITIES)}  # type: ignore[var-annotated]
            for _ in range(rounds):
                for quality, found in trips.items():
                    with PolicyClient(endpoint, timeout_s=30.0, jpeg=quality or None) as client:
                        client.wait_ready(30)

                        def call(observation: Observation, client: PolicyClient = client) -> bool:
                            return client.infer(observation).actions.shape == (HORIZON, JOINTS)

                        found.append(measure(call, seen, requests, server.pid or 0))
            for quality, found in trips.items():
                one = summary(found, trips[0])
                trip = {"p50": one["p50"], "x_p50": one["x_p50"], "server_cpu": one["server_cpu"]}
                rows.append({"noise": noise, "quality": quality, **trip, **codec_cost(seen, quality)})
    finally:
        server.terminate()
        server.join()
    return rows


def codec_cost(seen: list[Observation], quality: int) -> dict[str, float]:
    """Of one picture: encoding and decoding in us (medians), bytes, mean error in grey levels."""
    images = [image for observation in seen for image in observation.images.values()]
    if not quality:
        return {"encode": 0.0, "decode": 0.0, "bytes": float(images[0].nbytes), "error": 0.0}
    encode, decode, size, error = [], [], [], []
    for image in images:
        began = time.perf_counter()
        packed = pictures.encode(image, quality)
        encoded = time.perf_counter()
        pixels = pictures.decode(packed, image.size)
        encode.append(1e6 * (encoded - began))
        decode.append(1e6 * (time.perf_counter() - encoded))
        size.append(len(packed.data))
        error.append(float(np.abs(pixels.astype(np.int16) - image).mean()))
    medians = (statistics.median(values) for values in (encode, decode, size, error))
    return dict(zip(("encode", "decode", "bytes", "error"), medians, strict=True))


def address(subject: str, folder: str, size: str) -> str:
    return f"ipc://{folder}/{subject}-{size}" if subject.endswith("ipc") else f"tcp://127.0.0.1:{free_port()}"


def free_port() -> int:
    with zmq.Context() as context, context.socket(zmq.REP) as probe:
        return int(probe.bind_to_random_port("tcp://127.0.0.1"))


def start(subject: str, size: str, endpoint: str) -> BaseProcess:
    process = CONTEXT.Process(target=SERVE[subject.split("-")[0]], args=(size, endpoint), daemon=True)
    process.start()
    return process


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


def table(report: dict[str, Any]) -> str:
    columns = ("p10", "p50", "p99", "x_p10", "x_p50", "server_cpu", "x_server_cpu", "client_cpu", "wrong")
    lines = [
        "times in us; x: over raw-tcp of the same round, median over rounds",
        "| obs | subject | " + " | ".join(columns) + " |",
        "|---|---|" + "--:|" * len(columns),
    ]
    for size, subjects in report["sizes"].items():
        for subject, row in subjects.items():
            cells = (f"{row[name]:.2f}" if name.startswith("x_") else f"{row[name]:.0f}" for name in columns)
            lines.append(f"| {size} | {subject} | {' | '.join(cells)} |")
    for size, row in report["many"].items():
        lines.append(
            f"{size}, {row['clients']} clients: {row['per_s']:.0f} requests/s, {row['wrong']} wrong answers of "
            f"{row['answered']}, by client {row['slowest_client']} to {row['fastest_client']}, "
            f"slowest answer {row['slowest_ms']:.0f} ms"
        )
    names = ("noise", "quality", "bytes", "error", "encode", "decode", "p50", "x_p50", "server_cpu")
    lines += [
        "JPEG: bytes, error (grey levels), encode and decode of one 640x480 picture; round trip of three, x: over none",
        "| " + " | ".join(names) + " |",
        "|" + "--:|" * len(names),
        *("| " + " | ".join(f"{row[name]:.4g}" for name in names) + " |" for row in report["jpeg"]),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=150, help="per subject and round")
    parser.add_argument("--clients", type=int, default=8, help="client processes for the crossed-answers run; 0: none")
    parser.add_argument("--seconds", type=float, default=2.0, help="of that run, s")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--openpi", type=Path, help="also run openpi's own server and client, in this environment")
    arguments = parser.parse_args()
    report = run(arguments.rounds, arguments.requests, arguments.clients, arguments.seconds, arguments.openpi)
    print(json.dumps(report["machine"]))
    print(table(report))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
