"""An encoder that is behind costs no frame and no memory; a disk that is full costs the episode and not the loop."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from made_up import SPEC, episode, same

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.recorder import WORK, Recorder
from hotpolicy.finetune.storage import disk, layout, take
from hotpolicy.finetune.storage.images import VideoWriter
from hotpolicy.finetune.storage.spill import Spill
from hotpolicy.robots.feed import Feed
from hotpolicy.runtime.errors import DatasetError


def test_frames_come_back_in_order_and_the_space_is_used_again(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "spill", (4, 6, 3))
    frames = np.random.default_rng(0).integers(0, 255, (6, 4, 6, 3), np.uint8)
    for first, second in zip(frames[::2], frames[1::2], strict=True):
        spill.put(first[:, ::-1])  # not contiguous
        spill.put(second)
        np.testing.assert_array_equal(spill.get(), first[:, ::-1])
        np.testing.assert_array_equal(spill.get(), second)
    assert spill.path.stat().st_size == 2 * 4 * 6 * 3
    spill.close()
    spill.close()
    assert not spill.path.exists()


def test_what_the_encoders_are_behind_with_waits_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encode, gate, one = VideoWriter.add, threading.Event(), episode(0, 40)

    def slow(writer: VideoWriter, image: np.ndarray) -> None:
        assert gate.wait(30)
        encode(writer, image)

    monkeypatch.setattr(VideoWriter, "add", slow)
    monkeypatch.setattr(take, "ROOM", 3 * (24 * 32 + 16 * 16) * 3)
    with caplog.at_level(logging.WARNING), Recorder.open(tmp_path, SPEC, storage="video") as recorder:
        recorder.begin(one.task)
        for step in one.steps():
            recorder.step(step)  # returns although nothing is encoded
        waiting = sorted(path for path in (tmp_path / WORK).glob("*.spill"))
        assert [path.name for path in waiting] == ["observation.images.front.spill", "observation.images.wrist.spill"]
        assert waiting[0].stat().st_size > 30 * 24 * 32 * 3
        gate.set()
        recorder.save(one.success)
        assert not list((tmp_path / WORK).glob("*.spill"))
    same(Dataset.open(tmp_path).episode(0), one, pixels=3)
    record = layout.load_record(tmp_path / "data/chunk-000/file-000.parquet")
    assert 60 < record["spilled"] <= 80
    assert "encoding is behind, frames of front" in caplog.text


def test_a_disk_that_fills_costs_the_episode_and_the_loop_hears_of_it_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = episode(1)
    with Recorder.open(tmp_path, SPEC) as recorder:
        recorder.write(episode(0))
        feed = Feed(recorder)
        feed.begin(one.task)
        for number, step in enumerate(one.steps()):
            feed.step(step)
            if number == 3:
                feed.flush()
                monkeypatch.setattr(disk, "RESERVE", 2**60)
        feed.save()
        with pytest.raises(DatasetError, match=r"a frame of episode 1 could not be kept, after 4 that were .*No space"):
            feed.flush()
        assert "episode 1 is lost: frame 4 could not be kept" in caplog.text
        feed.discard()
        feed.close()
        with pytest.raises(DatasetError, match=r"episode 1 cannot be begun .* MB are needed, [0-9.]+ MB are free"):
            recorder.begin(one.task)  # says so before anybody demonstrates anything
        monkeypatch.undo()
        assert recorder.write(episode(2)) == 1
    same(Dataset.open(tmp_path).episode(1), episode(2))


FILLING = """
import resource, sys
from hotpolicy.finetune.recorder import Recorder
from hotpolicy.runtime.errors import DatasetError
from made_up import SPEC, episode
refused = 0
with Recorder.open(sys.argv[1], SPEC, storage=sys.argv[2]) as recorder:
    recorder.write(episode(0))
    for limit in (0, 1, 100, 1000, 3000, 6000):  # bytes a file may have: the kernel refuses the rest
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            recorder.write(episode(1))
        except DatasetError as error:
            assert "episode 1" in str(error), error
            refused += 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert recorder.write(episode(1)) == 1
print(refused)
"""


@pytest.mark.parametrize("storage", ["image", "video"])
def test_a_disk_that_refuses_anywhere_leaves_what_is_sealed(tmp_path: Path, storage: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILLING, str(tmp_path / "set"), storage],
        capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 6
    dataset = Dataset.open(tmp_path / "set")
    dataset.verify()
    for index in range(2):
        same(dataset.episode(index), episode(index), pixels=3)
