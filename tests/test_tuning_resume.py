"""A run that was killed goes on where it was and ends as it would have ended, to the last bit."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from test_tuning_training import LESSONS, SHORT
from tuning_parts import SPEC, TRANSFORMS, parent_model

from hotpolicy.finetune import snapshot as snapshots
from hotpolicy.finetune.outcome import Outcome
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.finetune.snapshot import Snapshot
from hotpolicy.finetune.trainer import Trainer
from hotpolicy.runtime.errors import TuningError

CONFIG = dataclasses.replace(SHORT, steps=12, evaluate_every=4, lora_rank=2, patience=50, rate=5e-3)


def trainer(config: TuneConfig) -> Trainer:
    return Trainer(parent_model(), TRANSFORMS, SPEC, LESSONS, config)


def whole(config: TuneConfig) -> Outcome:
    run = trainer(config)
    for _ in run.run():
        pass
    return run.outcome


def stopped_after(steps: int, config: TuneConfig) -> Snapshot:
    run = trainer(config)
    for _ in itertools.islice(run.run(), steps + 1):
        pass
    return run.snapshot()


@pytest.mark.parametrize("name", ["heads", "lora", "full", "progressive"])
@pytest.mark.parametrize("steps", [1, 9])
def test_a_resumed_run_is_the_same_run(tmp_path: Path, name: str, steps: int) -> None:
    config = dataclasses.replace(CONFIG, strategy=name)
    expected = whole(config)
    snapshots.save(tmp_path, "run", stopped_after(steps, config))
    kept = snapshots.newest(tmp_path, "run")
    assert kept is not None
    assert kept.step == min(steps, expected.steps)
    resumed = trainer(config)
    seen = [progress.step for progress in resumed.run(kept)]
    assert seen == list(range(kept.step, expected.steps + 1))
    outcome = resumed.outcome
    assert outcome.curves.train == expected.curves.train
    assert outcome.curves.evaluations == expected.curves.evaluations
    assert (outcome.step, outcome.stopped, outcome.learned) == (expected.step, expected.stopped, expected.learned)
    for (key, mine), theirs in zip(outcome.model.named_parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(mine, theirs), key


def test_only_the_newest_is_kept_and_only_of_this_run(tmp_path: Path) -> None:
    first, second = stopped_after(2, CONFIG), stopped_after(3, CONFIG)
    snapshots.save(tmp_path, "mine", first)
    snapshots.save(tmp_path, "other", first)
    path = snapshots.save(tmp_path, "mine", second)
    assert [folder.name for folder in path.parent.iterdir()] == ["step-000000003"]
    assert snapshots.newest(tmp_path, "nobody") is None
    found = snapshots.newest(tmp_path, "other")
    assert found is not None
    assert found.step == 2


def test_what_a_kill_left_half_written_is_not_read(tmp_path: Path) -> None:
    home = snapshots.save(tmp_path, "run", stopped_after(2, CONFIG)).parent
    torn = home / ".snapshot-torn"
    torn.mkdir()
    (torn / snapshots.TENSORS).write_bytes(b"half")
    found = snapshots.newest(tmp_path, "run")
    assert found is not None
    assert found.step == 2
    snapshots.save(tmp_path, "run", stopped_after(3, CONFIG))
    assert not torn.exists()


@pytest.mark.parametrize("name", [snapshots.FACTS, snapshots.TENSORS])
def test_a_damaged_one_is_refused_by_its_path(tmp_path: Path, name: str) -> None:
    path = snapshots.save(tmp_path, "run", stopped_after(2, CONFIG))
    (path / name).write_bytes(b"\x00garbage")
    with pytest.raises(TuningError, match="step-000000002: expected a training checkpoint"):
        snapshots.newest(tmp_path, "run")


def test_one_of_another_strategy_is_refused(tmp_path: Path) -> None:
    other = stopped_after(2, dataclasses.replace(CONFIG, strategy="heads"))
    with pytest.raises(TuningError, match="is not a part of both it and this run"):
        next(trainer(dataclasses.replace(CONFIG, strategy="expert")).run(other))


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hotpolicy.finetune.snapshot.durable.sync_folder", full)
    with pytest.raises(TuningError, match="the training checkpoint cannot be written: No space left on device"):
        snapshots.save(tmp_path, "run", stopped_after(1, CONFIG))
    assert not list(snapshots.home(tmp_path, "run").iterdir())
