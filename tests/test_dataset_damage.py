"""Damaged, foreign and busy folders: each is one clear line, and sealed episodes survive any crash."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from damages import (  # noqa: F401  some are fixtures
    DATA,
    PICTURES,
    a_copy_of_it,
    a_quick_disk,
    a_whole_one,
    edit,
    record,
    recorded,
    remove,
    tear,
)
from made_up import SPEC, episode, same

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.recorder import Recorder
from hotpolicy.finetune.storage.inspection import check
from hotpolicy.runtime.errors import DatasetError

REFUSED = {
    "no info": (remove("meta/info.json"), "meta/info.json is missing"),
    "torn info": (tear("meta/info.json"), "expected JSON"),
    "old version": (
        edit("meta/info.json", codebase_version="v2.1"),
        "expected LeRobotDataset v3.0, got version 'v2.1'",
    ),
    "no fps": (edit("meta/info.json", fps=0), "fps above 0"),
    "bad counts": (edit("meta/info.json", total_frames="many"), "expected whole counts"),
    "no features": (edit("meta/info.json", features={"action": {}}), "features with dtype and shape"),
    "too many episodes": (
        edit("meta/info.json", total_episodes=4),
        "counts 4 episodes and 21 frames, meta/episodes has 3 and 21",
    ),
    "too many frames": (edit("meta/info.json", total_frames=22), "counts 3 episodes and 22 frames"),
    "too many tasks": (edit("meta/info.json", total_tasks=3), "expected 3 tasks, found 2"),
    "no tasks": (remove("meta/tasks.parquet"), "tasks.parquet: missing"),
    "no data": (remove(DATA), "file-001.parquet: missing"),
    "torn data": (tear(DATA), "file-001.parquet: expected a whole parquet file"),
    "no video": (remove(PICTURES), "file-001.mp4: missing"),
    "no episodes": (remove("meta/episodes/chunk-000/file-000.parquet"), "expected episode 0 from frame 0"),
}


@pytest.mark.parametrize("damage", REFUSED)
def test_a_damaged_folder_is_refused_in_one_line(root: Path, damage: str) -> None:
    harm, message = REFUSED[damage]
    harm(root)
    with pytest.raises(DatasetError) as caught:
        Dataset.open(root)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(root) in str(caught.value)


def test_torn_and_altered_frames_are_named_when_they_are_read(root: Path) -> None:
    dataset = Dataset.open(root)
    tear(PICTURES)(root)
    with pytest.raises(DatasetError, match=r"file-001\.mp4"):
        dataset.episode(1)
    same(dataset.episode(0), recorded(0), pixels=3)
    with pytest.raises(DatasetError, match=r"file-001\.mp4: altered"):
        dataset.verify()


def test_folders_that_are_no_dataset_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="found nothing"):
        Dataset.open(tmp_path / "absent")
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(DatasetError, match=r"found holiday\.jpg"):
        Recorder.open(tmp_path, SPEC)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_one_recorder_per_folder(tmp_path: Path) -> None:
    with Recorder.open(tmp_path, SPEC), pytest.raises(DatasetError, match="another recorder"):
        Recorder.open(tmp_path, SPEC)
    Recorder.open(tmp_path, SPEC).close()


def test_another_robot_is_not_appended(root: Path) -> None:
    with pytest.raises(DatasetError, match="at 10 Hz, this robot runs at 30 Hz"):
        Recorder.open(root, replace(SPEC, rate_hz=30))
    with pytest.raises(DatasetError, match="column action"):
        Recorder.open(root, replace(SPEC, joints=SPEC.joints[:2]))
    with pytest.raises(DatasetError, match=r"column observation\.images\.front"):
        Recorder.open(root, SPEC, storage="image")
    with pytest.raises(DatasetError, match=r"observation\.images\.wrist"):
        Recorder.open(root, replace(SPEC, cameras=SPEC.cameras[:1]))


def test_a_full_disk_costs_the_episode_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with Recorder.open(tmp_path, SPEC, storage="video") as recorder:
        recorder.write(episode(0))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(DatasetError, match=r"episode 1 was not sealed \(.*data\.parquet: No space left"):
                recorder.write(episode(1))
        assert recorder.write(episode(2)) == 1
    dataset = Dataset.open(tmp_path)
    same(dataset.episode(0), episode(0), pixels=3)
    same(dataset.episode(1), episode(2), pixels=3)


class Crash(BaseException):
    """The power goes: no handler of ours may tidy up."""


@pytest.mark.parametrize("storage", ["image", "video"])
def test_a_crash_at_any_disk_operation_loses_at_most_the_episode_in_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    record(tmp_path / "base", storage, episodes=1)
    replace_file, operation, crashed = os.replace, 0, True
    while crashed:
        operation += 1
        root = tmp_path / f"crash-{operation}"
        shutil.copytree(tmp_path / "base", root)
        done = 0

        def dying(source: Path, target: Path) -> None:
            nonlocal done
            done += 1
            if done == operation:  # noqa: B023 - called within this turn of the loop only
                raise Crash
            replace_file(source, target)

        recorder = Recorder.open(root, SPEC, storage=storage)  # type: ignore[arg-type]
        crashed = False
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying)
            patch.setattr(Recorder, "discard", lambda self: None)  # a dead process discards nothing
            try:
                recorder.write(episode(1))
            except Crash:
                crashed = True
        recorder._lock.release()

        assert len(Dataset.open(root)) == (1 if crashed else 2)  # readable even before repair
        with Recorder.open(root, SPEC, storage=storage) as again:  # type: ignore[arg-type]
            assert bool(again.repaired) == crashed
            assert again.write(episode(2)) == (1 if crashed else 2)
        dataset = Dataset.open(root)
        dataset.verify()
        same(dataset.episode(0), recorded(0), pixels=3)
        same(dataset.episode(len(dataset) - 1), episode(2), pixels=3)
        assert {path.name for path in (root / ".recording").iterdir()} <= {"lock"}
        rows = sum(1 for _ in (root / "data").glob("*/*.parquet"))
        assert rows == len(dataset)
    assert operation == (6 if storage == "image" else 8) + 1  # data, videos, episodes, tasks, stats, extra, info


WRITER = """
import sys
from hotpolicy.finetune.storage.inspection import check
from hotpolicy.finetune.recorder import Recorder
from made_up import SPEC, episode
with Recorder.open(sys.argv[1], SPEC, storage=sys.argv[2]) as recorder:
    for seed in range(len(recorder), 10_000):
        recorder.write(episode(seed))
        print(seed, flush=True)
"""


def test_kill_minus_nine_never_costs_a_sealed_episode(tmp_path: Path) -> None:
    acknowledged = -1
    for pause in (1, 3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "set"), "video"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        ) as writer:
            assert writer.stdout is not None
            for _ in range(pause):
                acknowledged = int(writer.stdout.readline())
            time.sleep(random.Random(pause).uniform(0, 0.1))  # anywhere in what follows
            writer.send_signal(signal.SIGKILL)
            acknowledged = max([acknowledged, *map(int, writer.stdout.read().split())])
        assert check(tmp_path / "set")[1] == []
        dataset = Dataset.open(tmp_path / "set")
        assert len(dataset) in (acknowledged + 1, acknowledged + 2)
    with Recorder.open(tmp_path / "set", SPEC) as recorder:
        assert len(recorder) == len(dataset)
    for index in range(len(dataset)):
        same(dataset.episode(index), episode(index), pixels=3)
