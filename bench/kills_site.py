"""What the kills of tuning happen in: a store with a tiny pi0, demonstrations, a server, a robot that always asks."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from forked import Forked, end_with_parent

from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.client import PolicyClient
from hotpolicy.runtime.errors import HotpolicyError
from hotpolicy.runtime.messages import Observation
from hotpolicy.runtime.store import Store

sys.path.append(str(Path(__file__).parent.parent / "tests"))
import tuning_parts as parts

PAUSE_S = 0.02  # between an answer and the next question


class Asker:
    """A robot in a process of its own. Made before anything that has threads."""

    def __init__(self, endpoint: str):
        tell, self._told = os.pipe()
        self._report, report = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            end_with_parent()
            os.write(report, json.dumps(_ask(endpoint, tell)).encode())
            os._exit(0)
        os.close(tell)
        os.close(report)

    def alive(self) -> bool:
        return os.waitpid(self.pid, os.WNOHANG) == (0, 0)

    def end(self) -> dict[str, Any]:
        """What it met: `asked`, `failed`, `longest_s` without an answer, `versions` that answered."""
        os.write(self._told, b"!")
        with os.fdopen(self._report, "rb") as report:
            found: dict[str, Any] = json.load(report)
        os.waitpid(self.pid, 0)
        return found


def _ask(endpoint: str, tell: int) -> dict[str, Any]:
    over = threading.Event()

    def watch() -> None:
        os.read(tell, 1)
        over.set()

    threading.Thread(target=watch, daemon=True).start()
    asked = failed = 0
    longest, versions = 0.0, set()
    seen = Observation({"front": np.full((16, 16, 3), 128, np.uint8)}, np.zeros(3, np.float32), parts.NEW)
    with PolicyClient(endpoint, timeout_s=2.0) as client:
        client.wait_ready(60)
        answered = time.monotonic()
        while not over.is_set():
            asked += 1
            try:
                chunk = client.infer(seen)
            except HotpolicyError:
                failed += 1
                continue
            assert np.isfinite(chunk.actions).all()
            versions.add(chunk.version)
            longest = max(longest, time.monotonic() - answered)
            answered = time.monotonic()
            time.sleep(PAUSE_S)
    return {"asked": asked, "failed": failed, "longest_s": round(longest, 2), "versions": sorted(versions)}


class Site:
    def __init__(self, folder: Path, steps: int, save_s: float):
        self.folder, self.steps, self.save_s = folder, steps, save_s
        self.store, self.data = folder / "store", folder / "data"
        self.endpoint = f"ipc://{folder}/s"
        self.base = Store(self.store).add(parts.full_bundle(folder / "sealed").folder)
        parts.record(self.data, range(10))
        self.asker = Asker(self.endpoint)
        self.known: set[str] = {self.base}  # versions that were sealed and said so
        self.server = self.serve()

    def serve(self) -> Forked:
        server = Forked("serve", "--store", self.store, "--endpoint", self.endpoint)
        assert server.until(lambda line: line.startswith("ready")), server.wait()
        return server

    def words(self, seed: int, *more: object) -> list[object]:
        """A job that passes the gate."""
        return [
            "finetune", self.data, "--store", self.store, "--base", self.base, "--strategy", "full", "--rate", 0.005,
            "--steps", self.steps, "--trials", 0, "--seed", seed, "--save-every", self.save_s, "--nice", 0,
            "--old-error", 1000, "--json", *more,
        ]  # fmt: skip

    def weights(self, version: str) -> dict[str, str]:
        """Digests of its tensors: seconds and latencies in its story differ from run to run."""
        return {name: info.sha256 for name, info in Store(self.store).open(version).manifest.tensors.items()}

    def whole(self) -> int:
        """Check all that is sealed, after a kill; how many bundles that are."""
        store, sealed = Store(self.store), 0
        for home in (self.store / "versions", self.store / "candidates"):
            for path in home.glob("[!.]*"):
                Bundle.open(path, expect=path.name).verify()
                sealed += 1
        lost = self.known - {bundle.id for bundle in store.versions()}
        assert not lost, f"lost: {lost}"
        store.chain(store.live())
        assert self.asker.alive()
        return sealed

    def sealed(self, run: Forked) -> str | None:
        """The version it said it had sealed and added; from here on it must never be lost."""
        for _, event in run.events("sealed"):
            assert event["passed"], event
            self.known.add(event["version"])
            return str(event["version"])
        return None

    def end(self) -> dict[str, Any]:
        """What the robot met."""
        found = self.asker.end()
        self.server.stop()
        return found
