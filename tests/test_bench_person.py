"""What the benchmark of corrections counts as a person's work is what the recorder was given."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.launch.nano import SHIPPED
from hotpolicy.robots.sim.tasks import Task
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.policy import load_policy


def test_frames_acted_and_watched_are_those_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "bench"))
    import person

    tasks = (Task("hover", "red"), Task("touch", "blue"))  # the policy knows the second, and needs nobody there
    shown = person.demonstrated(tmp_path, tasks, 7, lambda kept, work: kept == 2)
    assert (shown.episodes, shown.failed, shown.watched) == (2, 0, 0)
    assert shown.acted == sum(info.length for info in Dataset.open(tmp_path).episodes)

    helped = person.corrected(tmp_path, tasks, 7, 2, load_policy([Bundle.open(SHIPPED)], threads=1))
    assert helped.episodes == 3  # hover, touch, hover
    recorded = Dataset.open(tmp_path)
    assert [recorded.episode(index, ()).task for index in (2, 3)] == [tasks[0].instruction] * 2
    corrected = [recorded.episode(index, ()) for index in (2, 3)]
    assert helped.acted == sum(episode.intervention.sum() for episode in corrected) > 0
    alone = helped.watched - sum((~episode.intervention).sum() for episode in corrected)
    assert 0 < alone <= tasks[1].time_limit  # the episode that was only watched
