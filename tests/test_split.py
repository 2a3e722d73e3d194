"""Held out: some of every task over all datasets, and never taken back, whatever grows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tuning_parts import SPEC, TRANSFORMS, episode, full_bundle, weights

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.lessons import gather
from hotpolicy.finetune.recorder import Recorder
from hotpolicy.finetune.split import Split, split
from hotpolicy.finetune.storage.catalog import EpisodeInfo
from hotpolicy.finetune.storage.layout import Info
from hotpolicy.runtime.bundle import Bundle, seal
from hotpolicy.runtime.errors import DatasetError


def of(name: str, tasks: str) -> Dataset:
    """Episodes, one for each letter, which is its task; a capital failed. Another name is another content."""
    infos = tuple(
        EpisodeInfo(i, 2, task.lower(), 2 * i, f"{name}{i}", {}, task.islower(), 0) for i, task in enumerate(tasks)
    )
    return Dataset(Path(name), Info(10, {}, len(tasks)), (), infos, {"sha256": {one.file: one.file for one in infos}})


def held(datasets: list[Dataset], share: float = 0.15, ancestors: list[Bundle] | None = None) -> set[tuple[str, int]]:
    sides = split(datasets, share, ancestors or [])
    for dataset, side in zip(datasets, sides, strict=True):
        assert sorted(side.train + side.held_out) == [one.index for one in dataset.episodes if one.success]
    return {(d.root.name, index) for d, side in zip(datasets, sides, strict=True) for index in side.held_out}


def tuned_on(place: Path, datasets: list[Dataset], sides: list[Split]) -> Bundle:
    """A version whose provenance has these."""
    made = [
        {"root": d.root.name, "digest": d.digest, "episodes": side.train, "held_out": side.held_out, "failed": 0}
        for d, side in zip(datasets, sides, strict=True)
    ]
    model = full_bundle(place / "base", rehearse=False).manifest.model
    return seal(
        place / "tuned", kind="full", parent=None, model=model, tensors=weights(), spec=SPEC,
        transforms=TRANSFORMS.to_dict(), provenance={"datasets": made}, files={},
    )  # fmt: skip


def test_some_of_each_task_and_none_is_taken_back_as_a_dataset_grows() -> None:
    before: set[tuple[str, int]] = set()
    for count in (3, 9, 26):
        dataset = of("a", ("ab" * 13)[:count])
        now = held([dataset], 0.25)
        assert before <= now
        before = now
    for task in range(2):
        assert 3 <= sum(index % 2 == task for _, index in before) <= 4
    assert held([dataset], 0) == set()
    with pytest.raises(DatasetError, match="held_out"):
        split([dataset], 0.9)


def test_few_episodes_in_each_of_several_datasets_are_enough() -> None:
    datasets = [of(name, "abc") for name in ("one", "second", "third")]
    found = held(datasets)
    assert len(found) == 3
    assert {index for _, index in found} == {0, 1, 2}  # one of each task
    assert found <= held([*datasets, of("four", "abc" * 4)])
    assert found <= held([*datasets[:2], of("third", "abc" * 4)])


def test_failures_are_on_neither_side_and_take_no_place() -> None:
    (side,) = split([of("bad", "aaAAAAa")], 0.15)
    assert len(side.held_out) == 1
    assert sorted(side.train + side.held_out) == [0, 1, 6]
    failed = of("bad", "AAA")
    corrected = Dataset(
        failed.root, failed.info, (), tuple(replace(one, interventions=1) for one in failed.episodes), {}
    )
    (side,) = split([corrected], 0.15)
    assert sorted(side.train + side.held_out) == [0, 1, 2]  # corrections are right, even where they came too late


def test_what_an_ancestor_saw_keeps_its_side_whichever_dataset_grew(tmp_path: Path) -> None:
    datasets = [of(name, "a") for name in ("one", "second", "third")]
    sides = split(datasets, 0.15)
    ancestor = tuned_on(tmp_path, datasets, sides)
    first = of("one", "a" * 3)  # all places after it move
    grown = [first, *datasets[1:]]
    assert held(grown) != held(datasets)
    assert held(grown, ancestors=[ancestor]) == held(datasets)
    last = of("third", "a" * 9)  # and another block is begun
    after = held([first, datasets[1], last], ancestors=[ancestor])
    assert held(datasets) < after
    trained = {(d.root.name, index) for d, side in zip(datasets, sides, strict=True) for index in side.train}
    assert not after & trained
    other = of("different", "aaa")
    assert len(held([other], ancestors=[ancestor])) == 1


def test_what_is_gathered_is_split_over_all_datasets(tmp_path: Path) -> None:
    roots = []
    for number in range(3):
        with Recorder.open(tmp_path / str(number), SPEC) as recorder:
            recorder.write(episode(number))
        roots.append(tmp_path / str(number))
    lessons = gather([full_bundle(tmp_path / "sealed")], roots)
    assert sorted(len(source.held_out) for source in lessons.sources) == [0, 0, 1]
    assert lessons.new_held_out is not None
    assert (len(lessons.new), len(lessons.new_held_out)) == (24, 12)
