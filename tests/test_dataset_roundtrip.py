"""What the recorder writes, the reader gives back: numbers, frames, flags, statistics and digests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up import JOINTS, SPEC, episode, same

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.episodes import Episode
from hotpolicy.finetune.recorder import Recorder
from hotpolicy.finetune.storage import stats
from hotpolicy.finetune.storage.images import from_png, to_png
from hotpolicy.finetune.storage.layout import SUCCESS
from hotpolicy.runtime.errors import BadRequest, ConfigError, DatasetError
from hotpolicy.runtime.messages import CameraSpec


@pytest.mark.parametrize(
    ("storage", "codec", "pixels"), [("image", "h264", 0), ("video", "h264", 3), ("video", "av1", 3)]
)
def test_what_is_recorded_is_read_back(tmp_path: Path, storage: str, codec: str, pixels: float) -> None:
    spec = SPEC if codec == "h264" else replace(SPEC, cameras=(CameraSpec("front", 64, 96),))
    written = [episode(0, 5, spec=spec), episode(1, 9, "lift the blue cube", spec), episode(2, 1, spec=spec)]
    with Recorder.open(tmp_path / "set", spec, storage=storage, codec=codec) as recorder:  # type: ignore[arg-type]
        assert [recorder.write(one) for one in written] == [0, 1, 2]
        assert recorder.repaired == ()
    dataset = Dataset.open(tmp_path / "set")
    for index, one in enumerate(written):
        same(dataset.episode(index), one, pixels)
    assert (len(dataset), dataset.rate_hz, dataset.joints) == (3, 10, JOINTS)
    assert dataset.tasks == ("touch the red cube", "lift the blue cube")
    assert dataset.spec == spec
    assert dataset.cameras == spec.cameras
    assert [info.length for info in dataset.episodes] == [5, 9, 1]
    assert [info.success for info in dataset.episodes] == [True, False, None]
    assert [info.interventions for info in dataset.episodes] == [int(one.intervention.sum()) for one in written]
    dataset.verify()


def test_cameras_can_be_left_out(tmp_path: Path) -> None:
    with Recorder.open(tmp_path, SPEC) as recorder:
        recorder.write(episode(0))
    dataset = Dataset.open(tmp_path)
    assert dataset.episode(0, cameras=()).images == {}
    assert list(dataset.episode(0, cameras=["wrist"]).images) == ["wrist"]
    with pytest.raises(DatasetError, match="expected cameras among"):
        dataset.episode(0, cameras=["side"])


def test_small_cameras_are_kept_without_loss_and_large_ones_as_video(tmp_path: Path) -> None:
    spec = replace(SPEC, cameras=(CameraSpec("small", 64, 64), CameraSpec("large", 240, 320)))
    with Recorder.open(tmp_path, spec) as recorder:
        recorder.write(episode(1, 3, spec=spec))
    dataset = Dataset.open(tmp_path)
    assert {name: f["dtype"] for name, f in dataset.features.items() if "images" in name} == {
        "observation.images.small": "image",
        "observation.images.large": "video",
    }
    same(dataset.episode(0), episode(1, 3, spec=spec), pixels=3)


def test_appending_keeps_storage_and_numbers_on(tmp_path: Path) -> None:
    with Recorder.open(tmp_path, SPEC, storage="video") as recorder:
        recorder.write(episode(0))
    with Recorder.open(tmp_path, SPEC) as recorder:
        assert recorder.repaired == ()
        assert recorder.write(episode(4, task="hover")) == 1
    dataset = Dataset.open(tmp_path)
    same(dataset.episode(0), episode(0), pixels=3)
    same(dataset.episode(1), episode(4, task="hover"), pixels=3)
    assert dataset.column("index").tolist() == list(range(14))
    assert dataset.column("timestamp")[7:].tolist() == pytest.approx([i / 10 for i in range(7)])
    assert sorted(dataset.versions) == ["version-0", "version-1", "version-2"]


def test_stats_cover_every_frame(tmp_path: Path) -> None:
    written = [episode(seed, 20 + seed) for seed in range(3)]
    with Recorder.open(tmp_path, SPEC) as recorder:
        for one in written:
            recorder.write(one)
    merged = stats.to_lists(Dataset.open(tmp_path).stats())
    stored = json.loads((tmp_path / "meta/stats.json").read_text())
    assert stored.keys() == merged.keys()
    for column, parts in stored.items():
        for name, value in parts.items():
            np.testing.assert_allclose(value, merged[column][name])
    state = np.concatenate([one.state for one in written]).astype(np.float64)
    np.testing.assert_allclose(merged["observation.state"]["mean"], state.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(merged["observation.state"]["std"], state.std(axis=0), rtol=1e-6)
    np.testing.assert_allclose(merged["observation.state"]["max"], state.max(axis=0))
    assert merged["observation.state"]["count"] == [63]
    front = np.concatenate([one.images["front"] for one in written]).reshape(-1, 3) / 255
    np.testing.assert_allclose(np.ravel(merged["observation.images.front"]["mean"]), front.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(np.ravel(merged["observation.images.front"]["std"]), front.std(axis=0), rtol=1e-6)


def test_image_quantiles_are_those_of_the_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    levels = stats.ImageStats()
    levels.add(image)
    found = levels.stats()
    for name, q in stats.QUANTILES.items():
        wanted = np.quantile(image.reshape(-1, 3), q, axis=0, method="inverted_cdf") / 255
        np.testing.assert_allclose(np.ravel(found[name]), wanted)


def test_an_episode_is_steps_and_steps_are_an_episode() -> None:
    one = episode(1)
    same(Episode.from_steps(list(one.steps()), success=False), one)
    with pytest.raises(BadRequest, match="at least one step"):
        Episode.from_steps([])


def test_digest_names_the_content_wherever_it_lies(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 3)):
        with Recorder.open(tmp_path / name, SPEC) as recorder:
            recorder.write(episode(seed))
    a, b, c = (Dataset.open(tmp_path / name).digest for name in "abc")
    assert a == b != c
    (tmp_path / "a/meta/hotpolicy.json").unlink()  # the hashes are then taken from the files
    assert Dataset.open(tmp_path / "a").digest == a


def test_success_is_marked_at_the_last_frame(tmp_path: Path) -> None:
    with Recorder.open(tmp_path, SPEC) as recorder:
        recorder.write(episode(0, 3))
        recorder.write(episode(1, 3))
    assert Dataset.open(tmp_path).column(SUCCESS).tolist() == [False, False, True, False, False, False]


def test_png_is_lossless() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(from_png(to_png(image)), image)
    for torn in (b"", b"GIF89a", to_png(image)[:40]):
        with pytest.raises(DatasetError, match="image"):
            from_png(torn)


def test_steps_are_checked_at_the_door(tmp_path: Path) -> None:
    good = next(episode(0).steps())
    nan = good.action.copy()
    nan[1] = np.nan
    crossed = {**good.observation.images, "front": good.observation.images["wrist"]}
    wrong = {
        "action: expected finite": replace(good, action=nan),
        "requested: expected 3 joints": replace(good, requested=good.requested[:2]),
        "action: expected float32": replace(good, action=good.action.astype(np.float64)),
        "images: expected the cameras": replace(good, observation=replace(good.observation, images={})),
        "images.front: expected uint8": replace(good, observation=replace(good.observation, images=crossed)),
        "task: expected 'touch": replace(good, observation=replace(good.observation, task="another")),
    }
    with Recorder.open(tmp_path, SPEC) as recorder:
        with pytest.raises(BadRequest, match="begin"):
            recorder.step(good)
        recorder.begin(good.observation.task)
        for message, step in wrong.items():
            with pytest.raises(BadRequest, match=message):
                recorder.step(step)
        recorder.step(good)
        assert recorder.save(success=True) == 0
        recorder.begin("x")
        with pytest.raises(BadRequest, match="at least one frame"):
            recorder.save()
    assert len(Dataset.open(tmp_path).episode(0)) == 1


def test_robots_that_cannot_be_recorded_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    for spec, storage, message in (
        (replace(SPEC, rate_hz=12.5), "auto", "rate_hz"),
        (replace(SPEC, cameras=(CameraSpec("odd", 15, 15),)), "video", "even"),
        (replace(SPEC, cameras=(CameraSpec("a/b", 16, 16),)), "auto", "without '/'"),
    ):
        with pytest.raises(ConfigError, match=message):
            Recorder.open(tmp_path / "set", spec, storage=storage)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="codec"):
        Recorder.open(tmp_path / "set", SPEC, codec="vhs")
    assert not (tmp_path / "set").exists()
