"""kill -9 while a process records.

It records made-up episodes; on every third turn videos are encoded in threads, so slow that frames go to the spill,
else in a process of their own. It says which episodes were saved; after each kill all bytes are checked, every episode
is compared with what was recorded, and the folder is taken up again, by the recorder or, every other time, by `repair`.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.episodes import Episode
from hotpolicy.finetune.recorder import Recorder
from hotpolicy.finetune.storage.images import VideoWriter
from hotpolicy.finetune.storage.inspection import check
from hotpolicy.finetune.storage.repair import carry_out, plan
from hotpolicy.runtime.messages import CameraSpec, Joint, RobotSpec

LONGEST_S = 1.2  # from being ready to the kill
KILLS_OF_A_SET = 10
SPEC = RobotSpec(
    joints=tuple(Joint(f"joint_{i}.pos", "deg", -90, 90) for i in range(6)),
    cameras=(CameraSpec("front", 120, 160), CameraSpec("wrist", 64, 64)),
    rate_hz=30,
)


def episode(seed: int) -> Episode:
    """The same for the same seed: 5 to 34 frames, of which each has a brightness of its own."""
    draw = np.random.default_rng(seed)
    frames = int(draw.integers(5, 35))
    state = draw.normal(size=(frames, 6)).astype(np.float32)
    light = (40 + 3 * (np.arange(frames) + seed) % 150).astype(np.uint8)
    return Episode(
        task=["touch the cube", "lift the cube"][seed % 2],
        images={
            camera.name: np.broadcast_to(light[:, None, None, None], (frames, camera.height, camera.width, 3)).copy()
            for camera in SPEC.cameras
        },
        state=state, action=state + 1, requested=state + 2, intervention=draw.random(frames) < 0.3,
        versions=tuple(None if i % 3 == 0 else f"version-{(seed + i) % 3}" for i in range(frames)),
        success=[True, False, None][seed % 3],
    )  # fmt: skip


def same(read: Episode, written: Episode) -> bool:
    vectors = ("state", "action", "requested", "intervention")
    return (
        (read.task, read.versions, read.success) == (written.task, written.versions, written.success)
        and all(np.array_equal(getattr(read, name), getattr(written, name)) for name in vectors)
        and all(np.abs(read.images[n].astype(int) - image).max() <= 4 for n, image in written.images.items())
    )


def write() -> None:
    """The process that is killed: it imports all there is, and begins once it is told where."""
    order = json.loads(sys.stdin.readline())
    encode = VideoWriter.add
    if order["slow"]:
        from hotpolicy.finetune.storage import take

        def add(writer: VideoWriter, image: np.ndarray) -> None:
            time.sleep(0.01)
            encode(writer, image)

        take.ROOM = 4 * 120 * 160 * 3
        VideoWriter.add = add  # type: ignore[method-assign, assignment]
    with Recorder.open(order["root"], SPEC, encoding="thread" if order["slow"] else "process") as recorder:
        print("ready", flush=True)
        while True:
            print(recorder.write(episode(len(recorder))), flush=True)


class Writer:
    """Such a process, which costs a second to start: made while the bytes of the one before it are checked."""

    def __init__(self) -> None:
        command = [sys.executable, __file__]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)

    def killed_after(self, root: Path, slow: bool, delay_s: float) -> list[int]:
        """Record into `root` until `delay_s` after being ready; the episodes it said were saved."""
        with self._process as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps({"root": str(root), "slow": slow}) + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == "ready\n"
            time.sleep(delay_s)
            process.kill()
            return [int(line) for line in process.stdout if line.endswith("\n")]

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def record(folder: Path, kills: int, draw: random.Random, note: Callable[..., None]) -> int:
    """-> episodes sealed at the end. A data set is killed `KILLS_OF_A_SET` times: each time all of its bytes are
    checked, so one of 50 kills would cost minutes of checking alone."""
    sealed, writer = [0] * -(-kills // KILLS_OF_A_SET), Writer()
    for turn in range(kills):
        number, slow = turn // KILLS_OF_A_SET, turn % 3 == 2
        root = folder / f"set-{number}"
        saved = writer.killed_after(root, slow, draw.uniform(0, LONGEST_S))
        writer = Writer()
        sealed[number] = _checked(root, sealed[number], saved, bool(turn % 2), note)
    writer.end()
    for number, count in enumerate(sealed):  # and nothing has changed meanwhile
        dataset = Dataset.open(folder / f"set-{number}")
        dataset.verify()
        assert len(dataset) == count
        for index in range(count):
            assert same(dataset.episode(index), episode(index)), f"episode {index}"
    return sum(sealed)


def _checked(root: Path, before: int, saved: list[int], repairs: bool, note: Callable[..., None]) -> int:
    """Look at every byte after a kill. `before`: episodes sealed before it; `saved`: those it said it had saved.
    -> episodes sealed now."""
    found, damages = check(root)
    assert damages == [], damages
    sealed = found.info.total_episodes
    assert sealed >= max([before, *(number + 1 for number in saved)]), (sealed, saved)
    note("kills with an episode in progress", bool(found.leftovers or found.uncounted))
    note("kills with frames in the spill", any(file.endswith(".spill") for file in found.leftovers))
    note("kills between an episode's files and its count", bool(found.uncounted))
    if repairs:
        made = plan(root)
        carry_out(made)
        note("episodes sealed by repair", len(made.sealed))
        assert check(root)[1] == []
    dataset = Dataset.open(root)
    dataset.verify()
    assert len(dataset) >= sealed
    for index in range(before, len(dataset)):
        assert same(dataset.episode(index), episode(index)), f"episode {index}"
    return len(dataset)


if __name__ == "__main__":
    write()
