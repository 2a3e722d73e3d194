"""Ways to harm a dataset of three recorded episodes, and what is to be said of each; the fixtures of those who do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up import SPEC, episode

from hotpolicy.finetune.episodes import Episode
from hotpolicy.finetune.recorder import Recorder

DATA, PICTURES = "data/chunk-000/file-001.parquet", "videos/observation.images.front/chunk-000/file-001.mp4"
ROW = "meta/episodes/chunk-000/file-001.parquet"


def recorded(seed: int) -> Episode:
    return replace(episode(seed), task=["touch", "lift"][seed % 2])


def record(root: Path, storage: str = "video", episodes: int = 3) -> None:
    with Recorder.open(root, SPEC, storage=storage) as recorder:  # type: ignore[arg-type]
        for seed in range(episodes):
            recorder.write(recorded(seed))


@pytest.fixture(name="quick_disk", autouse=True)
def a_quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody cuts the power here: to wait for the disk would prove nothing."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(name="whole", scope="module")
def a_whole_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "set"
    record(folder)
    return folder


@pytest.fixture(name="root")
def a_copy_of_it(whole: Path, tmp_path: Path) -> Path:
    """To be harmed."""
    shutil.copytree(whole, tmp_path / "set")
    return tmp_path / "set"


def flip(name: str) -> Callable[[Path], None]:
    """One bit in the middle of a file."""

    def harm(root: Path) -> None:
        content = bytearray((root / name).read_bytes())
        content[len(content) // 2] ^= 1
        (root / name).write_bytes(content)

    return harm


def rewrite(name: str, column: str, change: Callable[[list], list]) -> Callable[[Path], None]:
    """A column of a parquet file, as a tool that knows nothing of sums would."""

    def harm(root: Path) -> None:
        table = pq.read_table(root / name, partitioning=None)
        at = table.column_names.index(column)
        values = pa.array(change(table.column(at).to_pylist()), table.schema.field(at).type)
        pq.write_table(table.set_column(at, table.schema.field(at), values), root / name)

    return harm


def edit(name: str, **changes: object) -> Callable[[Path], None]:
    def harm(root: Path) -> None:
        path = root / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return harm


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def tear(name: str) -> Callable[[Path], None]:
    return lambda root: os.truncate(root / name, (root / name).stat().st_size // 2)


DAMAGE = {
    "a bit in the rows": (flip(DATA), DATA, 1, "sha256 differs"),
    "a bit in a video": (flip(PICTURES), PICTURES, 1, "sha256 differs"),
    "torn rows": (tear(DATA), DATA, 1, "expected a whole parquet file"),
    "torn video": (tear(PICTURES), PICTURES, 1, "expected a whole mp4"),
    "no rows": (remove(DATA), DATA, 1, "missing"),
    "no video": (remove(PICTURES), PICTURES, 1, "missing"),
    "a row too few": (rewrite(DATA, "episode_index", lambda v: [*v[:-1], 9]), DATA, 1, "expected 7 rows, found 6"),
    "frames out of order": (rewrite(DATA, "frame_index", lambda v: v[::-1]), DATA, 1, "frame_index does not count"),
    "times that jump": (rewrite(DATA, "timestamp", lambda v: [*v[:-1], 9]), DATA, 1, "timestamp does not count"),
    "index of another": (rewrite(DATA, "index", lambda v: [n + 1 for n in v]), DATA, 1, "index does not count on"),
    "task of another": (rewrite(DATA, "task_index", lambda v: [0] * len(v)), DATA, 1, "is not 'lift'"),
    "a joint that is nan": (
        rewrite(DATA, "action", lambda v: [[float("nan")] * 3, *v[1:]]), DATA, 1, "action has numbers that are",
    ),
    "a hole": (rewrite(DATA, "action", lambda v: [None, *v[1:]]), DATA, 1, "expected a value in every row of action"),
    "no metadata of one": (remove(ROW), "meta/episodes", 1, "its row is lost"),
    "length": (rewrite(ROW, "length", lambda v: [8]), DATA, 1, "expected 8 rows, found 7"),
    "end": (rewrite(ROW, "dataset_to_index", lambda v: [15]), "meta/episodes", 1, "dataset_to_index"),
    "clip": (
        rewrite(ROW, "videos/observation.images.front/to_timestamp", lambda v: [9.0]), "meta/episodes", 1, "clip",
    ),
    "statistics": (
        rewrite(ROW, "stats/action/min", lambda v: [[0.0] * 3]), "meta/episodes", 1, "statistics of action are not",
    ),
    "no info": (remove("meta/info.json"), "meta/info.json", None, "missing"),
    "torn info": (tear("meta/info.json"), "meta/info.json", None, "expected JSON"),
    "frames counted": (edit("meta/info.json", total_frames=22), "meta/info.json", None, "counts 22 frames"),
    "episodes counted": (edit("meta/info.json", total_episodes=4), "data", 3, "nothing is left of it"),
    "no tasks": (remove("meta/tasks.parquet"), "meta/tasks.parquet", None, "missing"),
    "torn tasks": (tear("meta/tasks.parquet"), "meta/tasks.parquet", None, "expected a whole parquet"),
    "no statistics": (remove("meta/stats.json"), "meta/stats.json", None, "missing"),
    "old statistics": (
        lambda root: edit("meta/stats.json", action=json.loads((root / "meta/stats.json").read_text())["index"])(root),
        "meta/stats.json", None, "not the episodes' own: action",
    ),
    "no names": (remove("meta/hotpolicy.json"), "meta/hotpolicy.json", None, "missing"),
}  # fmt: skip
