"""How episodes and versions are sent in the fleet's simulation, which is how docs/scale.md says to send them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotpolicy.finetune.dataset import Dataset


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "bench"))


@pytest.mark.usefixtures("bench")
def test_a_dataset_that_grows_while_it_is_sent_arrives_as_it_was(tmp_path: Path) -> None:
    import fleet

    robot, there = fleet.Robot(tmp_path / "robot"), tmp_path / "there"
    fleet.record(robot, 0, 1)
    counted = (robot.folder / "data" / fleet.INFO).read_bytes()
    digest = Dataset.open(robot.folder / "data").digest
    fleet.record(robot, 1, 1)  # sealed between the copy of info.json and that of the rest
    assert fleet.ship(robot.folder / "data", there, fleet.INFO) > 0
    assert len(Dataset.open(there)) == 2
    (there / fleet.INFO).write_bytes(counted)
    assert Dataset.open(there).digest == digest


@pytest.mark.usefixtures("bench")
def test_what_says_that_all_is_there_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fleet

    source, there, order = tmp_path / "source", tmp_path / "there", list[str]()
    (source / "z").mkdir(parents=True)
    for name in ("a", "manifest.json", "z/weights"):
        (source / name).write_text(name)
    replace = fleet.os.replace

    def seen(fresh: Path, final: Path) -> None:
        order.append(final.relative_to(there).as_posix())
        replace(fresh, final)

    monkeypatch.setattr(fleet.os, "replace", seen)
    assert fleet.ship(source, there, "manifest.json") == len("a" + "manifest.json" + "z/weights")
    assert order == ["a", "z/weights", "manifest.json"]
    assert fleet.ship(source, there, "manifest.json") == 0
