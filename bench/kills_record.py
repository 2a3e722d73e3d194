"""kill -9 while a process records.

It records made-up episodes; on every third turn videos are encoded in threads, so slow that frames go to the spill,
else in a process of their own. It says which episodes were saved; after each kill all bytes are checked, every episode
is compared with what was recorded, and the folder is taken up again, by the recorder or, every other time, by `repair`.
"""

from __future__ import annotations

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


def write(root: Path, slow: bool) -> None:
    """The process that is killed."""
    encode = VideoWriter.add
    if slow:
        from hotpolicy.finetune.storage import take

        def add(self: VideoWriter, image: np.ndarray) -> None:
            time.sleep(0.01)
            encode(self, image)

        take.ROOM = 4 * 120 * 160 * 3
        VideoWriter.add = add  # type: ignore[method-assign]
    with Recorder.open(root, SPEC, encoding="thread" if slow else "process") as recorder:
        print("ready", flush=True)
        while True:
            print(recorder.write(episode(len(recorder))), flush=True)


def record(folder: Path, kills: int, draw: random.Random, note: Callable[..., None]) -> int:
    """-> episodes sealed at the end."""
    root, before = folder / "set", 0
    for turn in range(kills):
        slow = turn % 3 == 2
        command = [sys.executable, __file__, str(root), *(["--slow"] if slow else [])]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            time.sleep(draw.uniform(0, LONGEST_S))
            writer.kill()
            saved = [int(line) for line in writer.stdout if line.endswith("\n")]
        found, damages = check(root)
        assert damages == [], damages
        sealed = found.info.total_episodes
        assert sealed >= max([before, *(number + 1 for number in saved)]), (sealed, saved)
        note("kills with an episode in progress", bool(found.leftovers or found.uncounted))
        note("kills with frames in the spill", any(file.endswith(".spill") for file in found.leftovers))
        note("kills between an episode's files and its count", bool(found.uncounted))
        if turn % 2:
            made = plan(root)
            carry_out(made)
            note("episodes sealed by repair", len(made.sealed))
            assert check(root)[1] == []
        dataset = Dataset.open(root)
        dataset.verify()
        assert len(dataset) >= sealed
        for index in range(before, len(dataset)):
            assert same(dataset.episode(index), episode(index)), f"episode {index}"
        before = len(dataset)
    for index in range(before):  # and none of the first has changed meanwhile
        assert same(dataset.episode(index), episode(index)), f"episode {index}"
    return before


if __name__ == "__main__":
    write(Path(sys.argv[1]), "--slow" in sys.argv)
