"""`hotpolicy dataset repair` brings back everything that is whole, and leaves the folder as it was beside it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from calling import call
from damages import (  # noqa: F401  some are fixtures
    DAMAGE,
    DATA,
    PICTURES,
    a_copy_of_it,
    a_quick_disk,
    a_whole_one,
    record,
    recorded,
    rewrite,
    tear,
)
from made_up import SPEC, same

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.recorder import Recorder
from hotpolicy.finetune.storage.footer import close_file
from hotpolicy.finetune.storage.inspection import check
from hotpolicy.finetune.storage.layout import Info
from hotpolicy.finetune.storage.repair import carry_out, plan, planned
from hotpolicy.runtime.errors import DatasetError

LEROBOT = Path(__file__).parent / "golden/lerobot_dataset"

# What a survey finds of these can be made again; the rest costs the episode.
MENDED = (
    "no metadata of one", "end", "clip", "statistics", "no info", "torn info", "frames counted", "no tasks",
    "torn tasks", "no statistics", "old statistics", "no names",
)  # fmt: skip
ALTERED_BUT_READ = ("times that jump", "index of another", "task of another")


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "lock":
            yield str(path.relative_to(folder)), path.read_bytes()


def holds(root: Path, *seeds: int, more: bool = True) -> None:
    """Whole, with these episodes of `record`, and `more`: open for another one."""
    assert check(root)[1] == []
    dataset = Dataset.open(root)
    dataset.verify()
    assert len(dataset) == len(seeds)
    for index, seed in enumerate(seeds):
        same(dataset.episode(index), recorded(seed), pixels=3)
    if not more:
        return
    with Recorder.open(root, SPEC) as recorder:
        assert recorder.repaired == ()
        assert recorder.write(recorded(4)) == len(seeds)
    assert check(root)[1] == []
    same(Dataset.open(root).episode(len(seeds)), recorded(4), pixels=3)


@pytest.mark.parametrize("damage", MENDED)
def test_metadata_is_made_again(root: Path, damage: str) -> None:
    DAMAGE[damage][0](root)
    harmed = dict(files(root))
    before = carry_out(plan(root))
    assert before is not None
    assert dict(files(before)) == harmed
    holds(root, 0, 1, 2)


@pytest.mark.parametrize("damage", ALTERED_BUT_READ)
def test_what_another_tool_changed_is_kept_only_when_asked_for(root: Path, damage: str) -> None:
    DAMAGE[damage][0](root)
    with pytest.raises(DatasetError, match=r"--drop must allow to take out episode 1: .*altered since"):
        carry_out(plan(root))
    carry_out(plan(root, keep_altered=True))
    holds(root, 0, 1, 2, more=damage == ALTERED_BUT_READ[0])


@pytest.mark.parametrize("damage", sorted(DAMAGE.keys() - {*MENDED, *ALTERED_BUT_READ}))
def test_what_is_lost_goes_only_when_asked_for_and_the_rest_counts_on(root: Path, damage: str) -> None:
    harm, _, number, _ = DAMAGE[damage]
    harm(root)
    harmed = dict(files(root))
    asks = f"nothing was changed; to mend it, --drop must allow to take out episode {number}"
    made = plan(root)
    with pytest.raises(DatasetError, match=asks):
        carry_out(made)
    assert dict(files(root)) == harmed
    before = carry_out(made, drop=True)
    assert before == root.with_name("set.before-repair")
    assert dict(files(before)) == harmed
    left = [seed for seed in range(3) if seed != number]
    assert Dataset.open(root).column("index").tolist() == list(range(7 * len(left)))
    holds(root, *left, more=damage in ("torn rows", "no video"))


def test_an_episode_written_to_the_end_but_never_counted_is_sealed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_file, done = os.replace, 0

    def dying(source: Path, target: Path) -> None:
        nonlocal done
        done += 1
        if done == 5:  # rows, two videos, the row of metadata: whole; then tasks, statistics, names, info.json
            raise KeyboardInterrupt
        replace_file(source, target)

    recorder = Recorder.open(root, SPEC)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)
        patch.setattr(Recorder, "discard", lambda self: None)
        with pytest.raises(KeyboardInterrupt):
            recorder.write(recorded(3))
    recorder._lock.release()
    assert "seal episode 3, which is whole but was never counted" in plan(root).lines()
    carry_out(plan(root))
    holds(root, 0, 1, 2, 3)


def test_what_never_ended_is_removed_and_nothing_else_touched(root: Path) -> None:
    sealed = dict(files(root))
    (root / ".recording/observation.images.front.mp4").write_bytes(b"half of")
    (root / "meta/.info.json.7.tmp").write_bytes(b"half of")
    assert carry_out(plan(root)) is None
    assert dict(files(root)) == sealed
    assert plan(root).lines() == []


def test_a_folder_in_use_is_left_alone(root: Path) -> None:
    (root / "meta/stats.json").unlink()
    with Recorder.open(root, SPEC), pytest.raises(DatasetError, match="a recorder has it open"):
        carry_out(plan(root))


def test_a_repair_that_was_killed_is_begun_again(root: Path) -> None:
    (root / "meta/stats.json").unlink()
    shutil.copytree(root, root.with_name(".set.repair"))
    carry_out(plan(root))
    holds(root, 0, 1, 2)
    assert sorted(path.name for path in root.parent.iterdir()) == ["set", "set.before-repair"]


def test_pictures_within_the_rows(tmp_path: Path) -> None:
    root = tmp_path / "set"
    record(root, "image")
    tear(DATA)(root)
    (root / "meta/info.json").unlink()
    carry_out(plan(root), drop=True)
    holds(root, 0, 2)


def test_lerobots_own_without_its_metadata(tmp_path: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(LEROBOT, root)
    shutil.rmtree(root / "meta/episodes")
    (root / "meta/stats.json").unlink()
    carry_out(plan(root))
    assert check(root)[1] == []
    ours, theirs = Dataset.open(root), Dataset.open(LEROBOT)
    assert [clip.start for info in ours.episodes for clip in info.clips.values()] == [0.0, 0.6]
    for index in range(2):
        same(ours.episode(index), theirs.episode(index))


def test_an_episode_out_of_lerobots_shared_files(tmp_path: Path) -> None:
    root, nan = tmp_path / "set", float("nan")
    shutil.copytree(LEROBOT, root)
    rewrite("data/chunk-000/file-000.parquet", "action", lambda v: [[nan] * 3, *v[1:]])(root)
    carry_out(plan(root), drop=True)
    assert check(root)[1] == []
    ours = Dataset.open(root)
    same(ours.episode(0), Dataset.open(LEROBOT).episode(1))
    np.testing.assert_array_equal(ours.column("index"), np.arange(5))


def never_closed(table: pa.Table, groups: int) -> bytes:
    """A parquet file as it is on disk when its writer is killed after so many row groups."""
    out = pa.BufferOutputStream()
    writer = pq.ParquetWriter(out, table.schema, compression="snappy")
    start = 0
    for size in range(len(table) // groups, len(table) + 1, len(table) // groups):
        writer.write_table(table.slice(start, size - start))
        start = size
    writer.close()
    content: bytes = out.getvalue().to_pybytes()
    return content[: -8 - int.from_bytes(content[-8:-4], "little")]


@pytest.mark.parametrize("name", ["video", "image"])
def test_rows_of_a_writer_that_was_killed_anywhere(tmp_path: Path, name: str) -> None:
    record(tmp_path, name)
    features = Info.load(tmp_path).features
    table = pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "data").glob("*/*.parquet"))])
    whole, found = never_closed(table.replace_schema_metadata(None), 3), set()
    for cut in [*range(0, len(whole), len(whole) // 60), len(whole)]:
        closed = close_file(whole[:cut], features)
        rows = 0 if closed is None else len(read := pq.read_table(BytesIO(closed)))
        assert rows in (0, 7, 14, 21)
        assert not rows or read.to_pylist() == table.slice(0, rows).to_pylist()
        found.add(rows)
    assert found == {0, 7, 14, 21}
    assert close_file(whole, {**features, "more": {"dtype": "float32", "shape": [1]}}) is None


def test_a_recording_of_lerobot_that_was_killed(tmp_path: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(LEROBOT, root)
    rows = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(rows, partitioning=None)
    parts = [table.slice(0, 6), table.slice(6)]
    out = pa.BufferOutputStream()
    with pq.ParquetWriter(out, table.schema, compression="snappy") as writer:
        for part in parts:
            writer.write_table(part)
    content = out.getvalue().to_pybytes()
    rows.write_bytes(content[: -8 - int.from_bytes(content[-8:-4], "little")])
    meta = root / "meta/episodes/chunk-000/file-000.parquet"
    meta.write_bytes(meta.read_bytes()[:4])
    sealed = dict(files(root))
    with planned(root) as made:
        assert "never closed; the first 11 frames can be read" in "".join(made.lines())
        before = carry_out(made)
    assert before is not None
    assert dict(files(before)) == sealed
    assert check(root)[1] == []
    assert sorted(path.name for path in root.parent.iterdir()) == ["set", "set.before-repair"]
    for index in range(2):
        same(Dataset.open(root).episode(index), Dataset.open(LEROBOT).episode(index))


def test_the_verb(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def repair(*options: str) -> tuple[int, str, str]:
        return call(capsys, monkeypatch, "dataset", "repair", root, *options)

    assert repair("--dry-run") == (0, "nothing to do\n", "")
    tear(PICTURES)(root)
    code, out, _ = repair("--dry-run")
    assert (code, out.splitlines()[0]) == (
        0,
        f"take out episode 1: {PICTURES}: front: expected a whole mp4 (Invalid data found when processing input)",
    )
    code, _, err = repair()
    assert (code, err.count("\n")) == (2, 1)
    code, out, _ = repair("--drop", "--json")
    done = json.loads(out)
    assert (code, done["episodes"], done["before"]) == (0, 2, f"{root}.before-repair")
    holds(root, 0, 2)
