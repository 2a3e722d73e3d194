"""What the policy server costs over a bare ZeroMQ socket: same bytes, same run, same machine.

    python bench/transport.py [--rounds 5] [--requests 150] [--clients 8] [--openpi VENV] [--out transport.json]

A null policy answers 50x7 float32 actions; S is one 224x224x3 camera, L three of 640x480x3. `raw` is pyzmq REQ/ROUTER
multipart with copy=False that parses nothing; `native` is PolicyServer and PolicyClient as robots use them, checks,
scheduler and inference thread included; `shared` is the same with the pictures copied into shared memory, `captured`
with pictures that were captured there. Before each request, and not in its time, its pictures are written where they
are sent from, as cameras do. `--openpi` adds openpi's own server and client from PyPI, in a virtual environment that is
made where it is not there. Rounds are interleaved and ratios are taken within a round, so that a busy machine disturbs
all alike. Every answer but raw's carries a checksum of its observation, and each is verified after it was timed. CPU is
the process's own, per request, from /proc (Linux).
Last, what JPEG costs on pictures of the virtual arm; `noise` is a sensor's, in grey levels.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from closed_loop import machine, measure, summary
from null_policy import SIZES, checksum, observations
from transport_jpeg import jpeg
from transport_subjects import CLIENT, CONTEXT, SUBJECTS, Openpi, address, native_client, start


def load(endpoint: str, size: str, seconds: float, results: Any) -> None:
    """One of several client processes at full rate."""
    seen, wrong, count, slowest = observations(size), 0, 0, 0.0
    with native_client(endpoint) as asker:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.monotonic()
            answer = asker.call(seen[count % len(seen)])
            slowest = max(slowest, time.monotonic() - began)
            wrong += answer != checksum(seen[count % len(seen)])
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
            with CLIENT[subject.split("-")[0]](endpoints[subject]) as asker:
                measured[subject].append(measure(asker, seen, requests, servers[subject].pid or 0))
        if peer:
            measured.setdefault("openpi", []).append(peer.ask(requests))
    if peer:
        peer.close()
    return {subject: summary(rounds, measured["raw-tcp"]) for subject, rounds in measured.items()}


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
