"""Videos encoded in a process of its own: as good as in threads, and whatever ends it costs one episode at most."""

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up import SPEC, episode, same

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.recorder import WORK, Recorder
from hotpolicy.finetune.storage import layout, remote_lane, take
from hotpolicy.finetune.storage.inspection import check
from hotpolicy.finetune.storage.slots import Slots
from hotpolicy.runtime.errors import DatasetError
from hotpolicy.runtime.messages import CameraSpec

FRAME = (24 * 32 + 16 * 16) * 3  # bytes of a frame of both cameras


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "set"


@pytest.fixture
def recorder(root: Path) -> Iterator[Recorder]:
    with Recorder.open(root, SPEC, storage="video", encoding="process") as recorder:
        yield recorder


def process(recorder: Recorder) -> int:
    assert recorder._encoders is not None
    return recorder._encoders.pid


def gone(pid: int, within_s: float = 10.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True  # over, and somebody else's to wait for
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def holds(root: Path, *seeds: int, frames: int = 7) -> None:
    assert check(root)[1] == []
    dataset = Dataset.open(root)
    assert len(dataset) == len(seeds)
    for index, seed in enumerate(seeds):
        same(dataset.episode(index), episode(seed, frames), pixels=3)


def test_what_it_makes_is_what_threads_make(root: Path, recorder: Recorder) -> None:
    for seed in range(2):
        recorder.write(episode(seed))
    recorder.begin("touch the red cube")
    recorder.step(next(episode(2).steps()))
    recorder.discard()
    assert {path.name for path in (root / WORK).iterdir()} == {"lock"}
    pid = process(recorder)
    assert Path(f"/proc/{pid}").exists()
    recorder.close()
    assert not Path(f"/proc/{pid}").exists()
    holds(root, 0, 1)
    other = root.with_name("threads")
    with Recorder.open(other, SPEC, storage="video", encoding="thread") as threads:
        for seed in range(2):
            threads.write(episode(seed))
    for file in [str(path.relative_to(root)) for path in root.glob("*/**/*.parquet")]:
        assert (root / file).read_bytes() == (other / file).read_bytes(), file  # statistics of pictures included
    assert Dataset.open(root).digest == Dataset.open(other).digest


def test_while_it_stands_still_frames_wait_in_bounded_memory_then_on_disk(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(take, "ROOM", 3 * FRAME)
    one = episode(0, 40)
    with caplog.at_level(logging.WARNING), Recorder.open(root, SPEC, storage="video", encoding="process") as recorder:
        recorder.write(episode(1))
        os.kill(process(recorder), signal.SIGSTOP)
        recorder.begin(one.task)
        for step in one.steps():
            recorder.step(step)  # returns all the same
        assert recorder._encoders is not None
        slots = recorder._encoders.slots.counts
        assert slots == {"observation.images.front": 2, "observation.images.wrist": 6}
        spilled = {path.name: path.stat().st_size for path in (root / WORK).glob("*.spill")}
        assert spilled["observation.images.front.spill"] == (40 - 2) * 24 * 32 * 3
        os.kill(process(recorder), signal.SIGCONT)
        recorder.save(one.success)
    assert {path.name for path in (root / WORK).iterdir()} == {"lock"}
    assert "encoding is behind, frames of front" in caplog.text
    same(Dataset.open(root).episode(1), one, pixels=3)
    assert layout.load_record(root / "data/chunk-000/file-001.parquet")["spilled"] == 40 - 2 + 40 - 6


def test_killed_in_mid_episode_it_costs_that_one_and_is_started_again(
    root: Path, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.write(episode(0))
    one, pid = episode(1), process(recorder)
    recorder.begin(one.task)
    for number, step in enumerate(one.steps()):
        if number == 3:
            os.kill(pid, signal.SIGKILL)
            assert gone(pid)
            recorder._encoders._reader.join()  # type: ignore[union-attr]  # so that the next step is told
        recorder.step(step)  # the loop goes on
    with pytest.raises(DatasetError, match=r"episode 1 .*the encoder process is over: killed by SIGKILL"):
        recorder.save(True)
    assert "episode 1 is lost" in caplog.text
    assert recorder.write(episode(2)) == 1
    assert process(recorder) != pid
    assert "starting another encoder process; the last one is over: killed by SIGKILL" in caplog.text
    os.kill(process(recorder), signal.SIGKILL)
    assert gone(process(recorder))
    assert recorder.write(episode(3)) == 2  # between episodes it costs none
    assert {path.name for path in (root / WORK).iterdir()} == {"lock"}
    holds(root, 0, 2, 3)


def test_one_that_hangs_is_killed(root: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder.write(episode(0))
    monkeypatch.setattr(remote_lane, "STALL_S", 0.3)
    pid = process(recorder)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(DatasetError, match=r"it did nothing for 0\.3 s and was killed"):
        recorder.write(episode(1))
    assert gone(pid)
    monkeypatch.undo()
    recorder.write(episode(2))
    holds(root, 0, 2)


def test_a_disk_that_refuses_it_costs_the_episode(root: Path, recorder: Recorder) -> None:
    recorder.write(episode(0))
    pid = process(recorder)
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)  # bytes a file may have: the kernel refuses the rest
    for limit in (0, 1000):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, before[1]))
        with pytest.raises(DatasetError, match=r"episode 1 .*File too large"):
            recorder.write(episode(1))
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    recorder.write(episode(2))
    assert process(recorder) == pid
    holds(root, 0, 2)


def test_signals_of_the_terminal_are_the_recorders(root: Path, recorder: Recorder) -> None:
    recorder.write(episode(0))
    for one in (signal.SIGINT, signal.SIGTERM):
        os.kill(process(recorder), one)
    recorder.write(episode(1))
    holds(root, 0, 1)


RECORDS = """
import os, sys, time
from hotpolicy.finetune.recorder import Recorder
from made_up import SPEC, episode
with Recorder.open(sys.argv[1], SPEC, storage="video", encoding="process") as recorder:
    recorder.write(episode(0))
    other = os.fork() if sys.argv[2] == "fork" else 0  # holds the pipe to the encoder open
    if sys.argv[2] == "fork" and other == 0:
        time.sleep(60)
        os._exit(0)
    recorder.begin(episode(1).task)
    print(recorder._encoders.pid, other, flush=True)
    for step in episode(1, 10_000).steps():
        recorder.step(step)
        time.sleep(0.01)
"""


@pytest.mark.parametrize("also", ["alone", "fork"])
def test_a_recorder_killed_leaves_no_process_and_no_memory(root: Path, also: str) -> None:
    shared = set(Path("/dev/shm").glob("*hotpolicy*"))
    with subprocess.Popen(
        [sys.executable, "-c", RECORDS, str(root), also], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as writer:  # fmt: skip
        assert writer.stdout is not None
        pid, other = map(int, writer.stdout.readline().split())
        assert "hotpolicy-frames" in Path(f"/proc/{pid}/maps").read_text()
        writer.kill()
        writer.wait()
        assert gone(pid)
        if other:
            os.kill(other, signal.SIGKILL)
    assert set(Path("/dev/shm").glob("*hotpolicy*")) == shared
    with Recorder.open(root, SPEC) as recorder:  # of the same storage
        assert len(recorder) == 1
        recorder.write(episode(2))
    holds(root, 0, 2)


def test_only_videos_of_some_size_are_worth_it(root: Path) -> None:
    with Recorder.open(root, SPEC, storage="video") as recorder:
        assert recorder._encoders is None
    spec = replace(SPEC, cameras=(CameraSpec("front", 480, 640),), rate_hz=30)
    one = episode(0, 3, spec=spec)
    with Recorder.open(root.with_name("large"), spec) as recorder:
        assert recorder._encoders is not None
        assert recorder._encoders._ready.is_set()  # before anybody demonstrates anything
        recorder.write(one)
    same(Dataset.open(root.with_name("large")).episode(0), one, pixels=3)


def test_slots_without_a_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    file, ours = Slots.create({"front": (4, 6, 3), "wrist": (2, 2, 3)}, 3 * 4 * 6 * 3)
    theirs = Slots.attach(file, ours.to_dict())
    os.close(file)
    assert theirs.counts == {"front": 3, "wrist": 18}
    image = np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8)
    ours.frame("front", 2)[:] = image
    np.testing.assert_array_equal(theirs.frame("front", 2), image)
    assert not theirs.frame("wrist", 0).any()
    assert not theirs.frame("front", 2).flags.writeable
