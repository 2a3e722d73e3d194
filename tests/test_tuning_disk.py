"""A disk that takes nothing more ends a tuning run with one clear line; what a kill left is removed by the next run."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from tuning_parts import full_bundle, record

from hotpolicy.finetune import drafts, moments
from hotpolicy.finetune import snapshot as snapshots
from hotpolicy.finetune.gate import Bounds
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.finetune.snapshot import Snapshot
from hotpolicy.launch.job import Job
from hotpolicy.launch.tuning import tune
from hotpolicy.runtime.errors import HotpolicyError, TuningError
from hotpolicy.runtime.store import Store

SHORT = TuneConfig.from_dict({"strategy": "heads", "steps": 2, "evaluate_every": 1, "batch": 4})


@pytest.fixture
def job(tmp_path: Path) -> Job:
    Store(tmp_path / "store").add(full_bundle(tmp_path / "sealed").folder)
    data = record(tmp_path / "data", range(4))
    return Job(tmp_path / "store", "live", (data,), SHORT, 1, gate=False, trials=0, bounds=Bounds(), save_every=0)


def refusing(code: int) -> object:
    def refuse(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("call", ["write_file", "settle_folder"])
def test_a_disk_that_takes_no_candidate_is_one_line(
    job: Job, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    events = tune(job)
    assert any(event["event"] == "trained" for event in events)  # so far the disk is well
    monkeypatch.setattr(f"hotpolicy.runtime.durable.{call}", refusing(code))
    with pytest.raises(
        TuningError, match=f"^[^\n]*store[^\n]*: cannot be written: {os.strerror(code)}(, [0-9.]+ MB are free)?$"
    ):
        next(events)
    assert not list((job.store / "candidates").iterdir())


def test_a_store_that_is_no_folder_is_one_line(job: Job) -> None:
    (job.store / "candidates").write_text("a file")
    with pytest.raises(HotpolicyError, match="candidates: cannot be written: File exists"):
        list(tune(job))


def test_what_safetensors_says_of_a_full_disk_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(snapshots, "save_file", full)
    monkeypatch.setattr(moments, "save_file", full)
    with pytest.raises(TuningError, match="the training checkpoint cannot be written: No space left on device"):
        snapshots.save(tmp_path / "training", "run", Snapshot({"step": 1}, {"a": torch.zeros(1)}))
    moments.save(tmp_path / "moments", "version", {"a": torch.zeros(1)})  # the version matters more
    assert moments.load(tmp_path / "moments", "version") is None


def test_a_draft_is_removed_once_its_run_is_gone(tmp_path: Path) -> None:
    left = tmp_path / f"{drafts.DRAFT}of-a-killed-run"
    left.mkdir()
    (left / "half").write_bytes(b"half")
    with drafts.draft(tmp_path) as first, drafts.draft(tmp_path) as second:
        assert sorted(tmp_path.iterdir()) == sorted([first, second])
    assert not list(tmp_path.iterdir())


def test_a_run_not_taken_up_for_a_week_is_given_up(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, age in ((old, snapshots.KEPT_S + 60), (new, 60.0)):
        folder.mkdir()
        os.utime(folder, (0, time.time() - age))
    (tmp_path / "job.lock").touch()
    snapshots.sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "job.lock", new]
