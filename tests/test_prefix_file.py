"""K/V kept from run to run: the same numbers as computed ones, only of the same weights, and never a torn record."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_tuning_training import LESSONS, SHORT, tune
from tuning_parts import NEW, OLD, SPEC, TRANSFORMS, parent_model, samples

from hotpolicy.finetune.cache import ComputedPrefixes, StoredPrefixes, longest
from hotpolicy.finetune.frames import Frames
from hotpolicy.finetune.lessons import Lessons
from hotpolicy.finetune.prefix_file import INDEX, RECORDS, PrefixFile, frame_keys
from hotpolicy.finetune.samples import Samples, join
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.finetune.sources import PrefixHome
from hotpolicy.finetune.trainer import Trainer
from hotpolicy.runtime.errors import TuningError


def varied(count: int, seed: int, task: str = NEW) -> Samples:
    """Episodes none of whose pictures is like another."""
    plain = samples(range(seed, seed + count), task)
    draw = np.random.default_rng(seed)
    return dataclasses.replace(plain, images=draw.integers(0, 256, plain.images.shape, np.uint8))


MODEL = parent_model()
NEW_SAMPLES = varied(6, 0)
FRAMES = Frames.encode(NEW_SAMPLES, TRANSFORMS)
OTHERS = Frames.encode(varied(3, 200, OLD), TRANSFORMS)
ROWS = torch.tensor([5, 0, 70, 5])
PLACES = 8


def opened(folder: Path, weights: str = "w", limit: int = 1 << 24) -> PrefixFile:
    file = PrefixFile.open(folder, weights, longest(MODEL, FRAMES), PLACES, limit)
    assert file is not None
    return file


def same(one: object, other: object) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_what_is_taken_is_what_the_model_computes_and_is_there_again(tmp_path: Path) -> None:
    file = opened(tmp_path)
    stored = StoredPrefixes(MODEL, FRAMES, file)
    assert stored.computed == len(set(frame_keys(FRAMES)))
    same(stored.take(ROWS), ComputedPrefixes(MODEL, FRAMES).take(ROWS))
    file.close()
    again = opened(tmp_path)
    back = StoredPrefixes(MODEL, FRAMES, again)
    assert back.computed == 0
    same(back.take(ROWS), stored.take(ROWS))
    assert StoredPrefixes(MODEL, OTHERS, again).computed == len(set(frame_keys(OTHERS)))  # only what is new
    same(back.take(ROWS), stored.take(ROWS))


def test_another_instruction_or_picture_is_another_frame() -> None:
    keys = frame_keys(FRAMES)
    moved = dataclasses.replace(FRAMES, tokens=FRAMES.tokens + FRAMES.token_mask)
    painted = dataclasses.replace(FRAMES, images=FRAMES.images ^ 1)
    assert not set(keys) & set(frame_keys(moved))
    assert not set(keys) & set(frame_keys(painted))
    hidden = dataclasses.replace(FRAMES, tokens=torch.where(FRAMES.token_mask, FRAMES.tokens, 9))
    assert frame_keys(hidden) == keys  # what is masked is not read


def test_other_weights_have_a_file_of_their_own(tmp_path: Path) -> None:
    first = opened(tmp_path)
    StoredPrefixes(MODEL, FRAMES, first)
    other = opened(tmp_path, "other weights")
    assert not any(key in other for key in frame_keys(FRAMES))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["half a line", "a record short", "garbage", "no index", "no records"])
def test_a_torn_file_loses_what_is_torn_and_no_more(tmp_path: Path, damage: str) -> None:
    file = opened(tmp_path)
    StoredPrefixes(MODEL, FRAMES, file)
    file.close()
    index, records = file.folder / INDEX, file.folder / RECORDS
    whole = len(index.read_text().splitlines())
    match damage:
        case "half a line":
            index.write_text(index.read_text()[:-3])
        case "a record short":
            records.write_bytes(records.read_bytes()[:-3])
        case "garbage":
            index.write_bytes(index.read_bytes() + b"\xff\x00 not a line\n")
        case "no index":
            index.unlink()
        case "no records":
            records.unlink()
    again = opened(tmp_path)
    known = sum(key in again for key in set(frame_keys(FRAMES)))
    assert known == {"half a line": whole - 1, "a record short": whole - 1, "garbage": whole}.get(damage, 0)
    back = StoredPrefixes(MODEL, FRAMES, again)
    assert back.computed == whole - known
    same(back.take(ROWS), ComputedPrefixes(MODEL, FRAMES).take(ROWS))


def test_a_file_stays_within_its_limit(tmp_path: Path) -> None:
    record = opened(tmp_path).record_bytes
    distinct = len(set(frame_keys(FRAMES)))
    small = opened(tmp_path / "small", limit=record * (distinct - 1))
    assert not small.reserve(frame_keys(FRAMES))
    fits = opened(tmp_path / "fits", limit=record * distinct)
    assert fits.reserve(frame_keys(FRAMES))
    StoredPrefixes(MODEL, FRAMES, fits)
    assert fits.reserve(frame_keys(FRAMES))  # they are there
    assert fits.reserve(frame_keys(OTHERS))  # and make room
    assert not any(key in fits for key in frame_keys(FRAMES))


def test_files_of_weights_long_gone_make_room(tmp_path: Path) -> None:
    for weights in ("oldest", "older"):
        file = opened(tmp_path, weights)
        StoredPrefixes(MODEL, FRAMES, file)
        file.close()
    used = opened(tmp_path, "in use")
    StoredPrefixes(MODEL, FRAMES, used)
    size = sum(path.stat().st_size for path in used.folder.iterdir())
    newest = opened(tmp_path, "newest", limit=size)
    assert {path.name for path in tmp_path.iterdir()} == {used.folder.name, newest.folder.name}


def test_one_process_at_a_time(tmp_path: Path) -> None:
    holder = (
        "import sys, time; from pathlib import Path; from filelock import FileLock\n"
        "lock = FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); time.sleep(60)"
    )
    file = opened(tmp_path)
    file.close()
    command = [sys.executable, "-c", holder, str(file.folder / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert PrefixFile.open(tmp_path, "w", longest(MODEL, FRAMES), PLACES, 1 << 24) is None
        process.kill()
    opened(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TuningError, match=r"prefixes cannot be kept there: "):
        opened(tmp_path / "file")


# ── in a run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def trained(config: TuneConfig, folder: Path, lessons: Lessons) -> tuple[Trainer, list[float]]:
    trainer = Trainer(parent_model(), TRANSFORMS, SPEC, lessons, config, PrefixHome(folder, "weights"))
    for _ in trainer.run():
        pass
    return trainer, trainer.curves.train


def test_a_run_learns_the_same_from_memory_from_a_file_and_from_what_another_run_kept(tmp_path: Path) -> None:
    lessons = dataclasses.replace(LESSONS, new=NEW_SAMPLES)
    expected = tune(lessons, SHORT).curves.train
    first, losses = trained(SHORT, tmp_path, lessons)
    assert first._sources.computed
    on_disk = dataclasses.replace(SHORT, cache_bytes=0, caching="require")
    second, from_file = trained(on_disk, tmp_path, lessons)
    assert second._sources.computed == 0
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    np.testing.assert_allclose(from_file, expected, rtol=1e-4)
    grown = dataclasses.replace(lessons, new=join([NEW_SAMPLES, varied(1, 300)]))
    third, _ = trained(SHORT, tmp_path, grown)
    assert third._sources.computed == len(varied(1, 300))  # the frames of one more episode
