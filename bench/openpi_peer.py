"""openpi's own server and client, from their published packages, in an environment of their own (they want numpy 1).

    VENV/bin/python bench/openpi_peer.py serve PORT
    VENV/bin/python bench/openpi_peer.py ask PORT SIZE     then a number of requests per line on stdin

Run by bench/transport.py; it imports nothing of ours. The policy computes what the null policy there computes. Each
line asked for is answered by one of JSON: latencies in us, CPU per request in us, wrong answers.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

HORIZON, JOINTS = 50, 7
SHAPES = {
    "S": {"front": (224, 224, 3)},
    "L": {"front": (480, 640, 3), "left": (480, 640, 3), "right": (480, 640, 3)},
}


def checksum(images: list[np.ndarray]) -> float:
    total = 0
    for number, image in enumerate(images, 1):
        total += number * (image.item(0) + 256 * image.item(image.size // 2)) + 65536 * (image.item(-1) & 31)
    return float(total)


class NullPolicy:
    metadata: dict[str, Any] = {}  # noqa: RUF012  (as their BasePolicy has it)

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        actions = np.zeros((HORIZON, JOINTS), np.float32)
        actions[0, 0] = checksum([obs[name] for name in ("front", "left", "right") if name in obs])
        return {"actions": actions}


def serve(port: int) -> None:
    from openpi_server import WebsocketPolicyServer

    WebsocketPolicyServer(NullPolicy(), "127.0.0.1", port, metadata={}).serve_forever()


def ask(port: int, size: str) -> None:
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    random = np.random.default_rng(port)
    seen: list[dict[str, Any]] = [
        {
            **{name: random.integers(0, 256, shape, np.uint8) for name, shape in SHAPES[size].items()},
            "state": random.standard_normal(JOINTS).astype(np.float32),
            "prompt": "pick up the red cube and put it into the box",
        }
        for _ in range(8)
    ]
    captured = {name: np.empty(shape, np.uint8) for name, shape in SHAPES[size].items()}
    until = time.monotonic() + 30
    while True:  # version 0.1.2 does not wait for its server
        try:
            policy = WebsocketClientPolicy("127.0.0.1", port)
            break
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)

    expected = [checksum([observation[name] for name in SHAPES[size]]) for observation in seen]
    for line in sys.stdin:
        for observation in seen:
            policy.infer(observation)
        latencies, wrong, spent = [], 0, 0.0
        for number in range(int(line)):
            shown = seen[number % len(seen)]
            for name, buffer in captured.items():  # not in the time, as for all subjects
                np.copyto(buffer, shown[name])
            began, cpu = time.perf_counter(), time.process_time()
            answer = policy.infer({**shown, **captured})["actions"].item(0)
            latencies.append(1e6 * (time.perf_counter() - began))
            spent += time.process_time() - cpu
            wrong += answer != expected[number % len(seen)]
        cpu_us = 1e6 * spent / int(line)
        print(json.dumps({"latencies": latencies, "client_cpu": cpu_us, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        ask(int(sys.argv[2]), sys.argv[3])
