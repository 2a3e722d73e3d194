"""A disk that is slow, or answers nothing for a while: the robot's loop, the server and a tuning run go on.

The disk is slowed down at the lowest place, where the system is asked (`os.fsync`, `os.pwrite`). What must not wait for
it is done while it answers nothing at all; so a wait would be one without an end, however busy the machine is.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import SPEC, episode, same
from tuning_parts import full_bundle, record

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.gate import Bounds
from hotpolicy.finetune.recorder import WORK, Recorder
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.finetune.storage import take
from hotpolicy.finetune.storage.images import VideoWriter
from hotpolicy.launch.tuning import Job, tune
from hotpolicy.robots.feed import Feed
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.client import ControlClient, PolicyClient
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.engine.echo_engine import SPEC as ECHO
from hotpolicy.runtime.engine.echo_engine import seal_echo
from hotpolicy.runtime.errors import RobotError
from hotpolicy.runtime.messages import Observation
from hotpolicy.runtime.server import PolicyServer
from hotpolicy.runtime.serving.control import Control
from hotpolicy.runtime.slot import Slot
from hotpolicy.runtime.store import Store
from hotpolicy.runtime.versions.loader import load_with

LONG_S = 30.0  # what fails instead of hanging


class Gate:
    """What goes through it waits while it is closed; `reached` once something does."""

    def __init__(self) -> None:
        self._open, self.reached = threading.Event(), threading.Event()
        self._open.set()

    def close(self) -> None:
        self.reached.clear()
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def before(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if not self._open.is_set():
                self.reached.set()
                assert self._open.wait(LONG_S)
            return real(*arguments)

        return call


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Answers nothing while it is closed: neither takes bytes nor says that it has them."""
    gate = Gate()
    monkeypatch.setattr(os, "fsync", gate.before(os.fsync))
    monkeypatch.setattr(os, "pwrite", gate.before(os.pwrite))
    yield gate
    gate.open()


def hand_over(feed: Feed, seed: int, frames: int = 7) -> None:
    one = episode(seed, frames)
    feed.begin(one.task)
    for step in one.steps():
        feed.step(step)
    feed.save(one.success)


def test_a_loop_does_not_wait_while_an_episode_is_sealed(tmp_path: Path, disk: Gate) -> None:
    with Recorder.open(tmp_path, SPEC) as recorder:
        feed = Feed(recorder)
        hand_over(feed, 0)
        feed.flush()
        disk.close()
        hand_over(feed, 1)
        assert disk.reached.wait(LONG_S)
        hand_over(feed, 2)  # a whole one more is taken meanwhile
        assert len(recorder) == 1
        disk.open()
        feed.flush()
        feed.close()
    for seed in range(3):
        same(Dataset.open(tmp_path).episode(seed), episode(seed))


def test_a_loop_does_not_wait_while_frames_are_spilled_and_an_episode_too_much_ends_aloud(
    tmp_path: Path, disk: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder is behind, so frames go to disk; the disk takes none, so they wait in the feed."""
    encoder = Gate()
    monkeypatch.setattr(VideoWriter, "add", encoder.before(VideoWriter.add))
    monkeypatch.setattr(take, "ROOM", 3 * (24 * 32 + 16 * 16) * 3)
    with Recorder.open(tmp_path, SPEC, storage="video") as recorder:
        feed = Feed(recorder, room_mb=50 * (24 * 32 + 16 * 16) * 3 / 1e6)
        for gate in (encoder, disk):
            gate.close()
        hand_over(feed, 0, frames=40)
        assert disk.reached.wait(LONG_S)
        for gate in (disk, encoder):
            gate.open()
        feed.flush()
        for gate in (encoder, disk):
            gate.close()
        with pytest.raises(RobotError, match=r"Recorder is \d+ MB behind the robot: .* a faster disk"):
            hand_over(feed, 1, frames=80)
        feed.discard()  # as the loop does with an episode that ended so
        for gate in (disk, encoder):
            gate.open()
        feed.flush()
        hand_over(feed, 2)
        feed.flush()
        feed.close()
    dataset = Dataset.open(tmp_path)
    assert len(dataset) == 2
    same(dataset.episode(0), episode(0, 40), pixels=3)
    same(dataset.episode(1), episode(2), pixels=3)
    assert not list((tmp_path / WORK).glob("*.spill"))


def test_a_server_answers_while_a_swap_waits_for_the_disk(tmp_path: Path, disk: Gate) -> None:
    store = Store(tmp_path / "store")
    base = seal_echo(tmp_path / "made", 0)
    store.add(base.folder)
    store.promote(base.id, "ann", "r0")
    better = store.add(seal_echo(tmp_path / "made", 1, parent=base).folder)
    slot = Slot(store, load_with("echo"))
    server = PolicyServer(ServeConfig(endpoint=f"ipc://{tmp_path}/s", drain_s=0.5), slot, Control(slot, store))
    server.start()
    server.wait_ready(10)
    camera = ECHO.cameras[0]
    seen = Observation(
        {camera.name: np.zeros((camera.height, camera.width, 3), np.uint8)}, np.zeros(len(ECHO.joints), np.float32), ""
    )
    swapped: list[dict[str, Any]] = []

    def swap() -> None:
        with ControlClient(server.control_endpoint) as operator:
            swapped.append(operator.swap(better, request_id="r1", by="test"))

    operating = threading.Thread(target=swap)
    try:
        with PolicyClient(server.endpoint, timeout_s=LONG_S) as robot, ControlClient(server.control_endpoint) as other:
            disk.close()
            operating.start()
            assert disk.reached.wait(LONG_S)
            assert {robot.infer(seen).version for _ in range(50)} == {base.id}
            assert other.ping() == "ready"
            assert not swapped
            assert Store(store.root).live() == base.id  # a crash now restarts on it
            disk.open()
            operating.join(LONG_S)
            assert (swapped[0]["version"], swapped[0]["before"]) == (better, base.id)
            assert robot.infer(seen).version == better
    finally:
        disk.open()
        server.stop()


def test_tuning_goes_on_through_a_disk_that_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for its checkpoints, and ends in the same weights."""
    data, ended, waits = record(tmp_path / "data", range(4)), {}, []
    short = TuneConfig.from_dict({"strategy": "heads", "steps": 3, "evaluate_every": 3, "batch": 4})
    base, fsync = full_bundle(tmp_path / "sealed"), os.fsync

    def slow(descriptor: int) -> None:
        waits.append(descriptor)
        time.sleep(0.02)
        fsync(descriptor)

    for disk in ("quick", "slow"):
        store = Store(tmp_path / disk)
        store.add(base.folder)
        job = Job(store.root, "live", (data,), short, 1, gate=False, trials=0, bounds=Bounds(), save_every=1e-9)
        with monkeypatch.context() as patch:
            if disk == "slow":
                patch.setattr(os, "fsync", slow)
            *_, sealed = tune(job)
        ended[disk] = {name: one.sha256 for name, one in Bundle.open(sealed["folder"]).manifest.tensors.items()}
    assert len(waits) > 3 * 3  # a checkpoint each step, of two files and a folder, and then the candidate
    assert ended["slow"] == ended["quick"]
