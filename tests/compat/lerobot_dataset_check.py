"""Do our datasets load in LeRobot's own loader, number for number, and does our reader load LeRobot's?

LeRobot needs Python 3.12 and gigabytes, so this has an environment of its own and is no part of `make test`:

    python3.12 -m venv /tmp/lerobot
    /tmp/lerobot/bin/pip install torch==2.9.1 torchvision==0.24.1 "lerobot[dataset]==0.6.1" filelock
    PYTHONPATH=.types:tests /tmp/lerobot/bin/python tests/compat/lerobot_dataset_check.py

`--golden FOLDER` also keeps the small dataset LeRobot wrote (tests/golden/lerobot_dataset was made so).
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

import av
import datasets
import lerobot
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from made_up import JOINTS, SPEC, episode

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.episodes import Episode
from hotpolicy.finetune.recorder import Recorder
from hotpolicy.finetune.storage.repair import carry_out, plan, planned
from hotpolicy.runtime.messages import CameraSpec

FLAGS = ("intervention", "next.success", "policy_version")


def ours_in_theirs(folder: Path, storage: str, codec: str) -> None:
    """Record three episodes in two sessions and compare every frame as LeRobot yields it."""
    spec = replace(SPEC, cameras=(CameraSpec("front", 64, 96), CameraSpec("wrist", 64, 64)))
    written = [episode(0, 6, spec=spec), episode(1, 9, "lift the blue cube", spec), episode(2, 4, spec=spec)]
    for part in (written[:2], written[2:]):
        with Recorder.open(folder, spec, storage=storage, codec=codec, encoding="process") as recorder:  # type: ignore[arg-type]
            for one in part:
                recorder.write(one)
    ours = Dataset.open(folder)
    theirs = LeRobotDataset("hotpolicy/check", root=folder)
    assert (theirs.num_episodes, theirs.num_frames, theirs.fps) == (3, 19, 10)
    assert theirs.meta.features["action"]["names"] == list(JOINTS)
    rows = iter(theirs[i] for i in range(len(theirs)))
    worst = 0.0
    for index, one in enumerate(written):
        read = ours.episode(index)
        for i in range(len(one)):
            row = next(rows)
            assert row["task"] == one.task
            assert (row["episode_index"].item(), row["frame_index"].item()) == (index, i)
            assert abs(row["timestamp"].item() - i / 10) < 1e-6
            np.testing.assert_array_equal(row["observation.state"].numpy(), one.state[i])
            np.testing.assert_array_equal(row["action"].numpy(), one.action[i])
            np.testing.assert_array_equal(row["requested_action"].numpy(), one.requested[i])
            assert row["intervention"].item() is bool(one.intervention[i])
            version = row["policy_version"].item()
            assert (ours.versions[version] if version >= 0 else None) == one.versions[i]
            for camera in spec.cameras:
                image = row[f"observation.images.{camera.name}"]
                levels = (image.numpy().transpose(1, 2, 0) * 255).round().astype(int)
                worst = max(worst, np.abs(levels - read.images[camera.name][i]).max())
    windows = LeRobotDataset("hotpolicy/check", root=folder, delta_timestamps={"action": [0.0, 0.1, 0.2]})
    np.testing.assert_array_equal(windows[6]["action"].numpy(), written[1].action[:3])
    stats = theirs.meta.stats["observation.state"]
    state = np.concatenate([one.state for one in written])
    np.testing.assert_allclose(stats["mean"], state.mean(axis=0), rtol=1e-4)
    # LeRobot decodes with torchcodec, we with PyAV: the two may round colours differently by a level or two
    assert worst <= (0 if storage == "image" else 3), worst
    print(f"ours in LeRobot, {storage} {codec if storage == 'video' else ''}: 19 frames equal, pixels within {worst:g}")


def theirs_in_ours(folder: Path, use_videos: bool) -> None:
    """Let LeRobot record two episodes and compare what our reader makes of them."""
    vector = {"dtype": "float32", "shape": (len(JOINTS),), "names": list(JOINTS)}
    picture = {
        "dtype": "video" if use_videos else "image",
        "shape": (64, 96, 3),
        "names": ["height", "width", "channels"],
    }
    features = {"observation.state": vector, "action": vector, "observation.images.front": picture}
    features["intervention"] = {"dtype": "bool", "shape": (1,), "names": None}
    spec = replace(SPEC, cameras=(CameraSpec("front", 64, 96),))
    written = [episode(0, 6, spec=spec), episode(1, 5, "lift the blue cube", spec)]
    theirs = LeRobotDataset.create(
        "hotpolicy/check", fps=10, features=features, root=folder, robot_type="so_follower", use_videos=use_videos
    )
    for one in written:
        for step in one.steps():
            frame = {
                "observation.state": step.observation.state,
                "action": step.action,
                "observation.images.front": step.observation.images["front"],
                "intervention": np.array([step.intervention]),
            }
            theirs.add_frame({**frame, "task": one.task})
        theirs.save_episode()
    shutil.copytree(folder, folder.with_name(f"{folder.name}-killed"))  # what a kill at this moment would leave
    theirs.finalize()
    loaded = LeRobotDataset("hotpolicy/check", root=folder)
    ours = Dataset.open(folder)
    assert (len(ours), ours.rate_hz, ours.joints, ours.spec) == (2, 10, JOINTS, None)
    worst, start = 0.0, 0
    for index, one in enumerate(written):
        read = ours.episode(index)
        assert (read.task, read.success, read.versions) == (one.task, None, (None,) * len(one))
        for name in ("state", "action", "intervention"):
            np.testing.assert_array_equal(getattr(read, name), getattr(one, name))
        np.testing.assert_array_equal(read.requested, one.action)
        for i in range(len(one)):
            image = loaded[start + i]["observation.images.front"].numpy().transpose(1, 2, 0)
            worst = max(worst, np.abs((image * 255).round().astype(int) - read.images["front"][i]).max())
        start += len(one)
    assert worst <= (3 if use_videos else 0), worst
    print(f"LeRobot in ours, {picture['dtype']}: 11 frames equal, pixels within {worst:g}")


def mended_in_theirs(folder: Path) -> None:
    """An episode is torn and taken out, another recorded behind it: LeRobot must see neither gap nor mix-up."""
    spec = replace(SPEC, cameras=(CameraSpec("front", 64, 96),))
    written = [episode(seed, 5 + seed, spec=spec) for seed in range(5)]
    with Recorder.open(folder, spec, storage="video") as recorder:
        for one in written[:4]:
            recorder.write(one)
    path = folder / "videos/observation.images.front/chunk-000/file-001.mp4"
    os.truncate(path, path.stat().st_size // 2)
    carry_out(plan(folder), drop=True)
    with Recorder.open(folder, spec) as recorder:
        recorder.write(written[4])
    left = [*written[:1], *written[2:]]
    _same_in_theirs(folder, left)
    print(f"mended by us in LeRobot: {sum(map(len, left))} frames equal")


def lost_metadata_of_theirs(folder: Path, written: Path) -> None:
    """What LeRobot recorded, without its metadata of episodes, mended by us, in LeRobot again."""
    shutil.copytree(written, folder)
    shutil.rmtree(folder / "meta/episodes")
    carry_out(plan(folder))
    spec = replace(SPEC, cameras=(CameraSpec("front", 64, 96),))
    _same_in_theirs(folder, [episode(0, 6, spec=spec), episode(1, 5, "lift the blue cube", spec)])
    print("LeRobot's without meta/episodes, mended by us, in LeRobot: 11 frames equal")


def killed_theirs(folder: Path) -> None:
    """A recording of LeRobot's that never reached `finalize`: neither rows nor episodes can be read, until mended."""
    with planned(folder) as made:
        carry_out(made)
    spec = replace(SPEC, cameras=(CameraSpec("front", 64, 96),))
    _same_in_theirs(folder, [episode(0, 6, spec=spec), episode(1, 5, "lift the blue cube", spec)])
    print(f"LeRobot's, killed before finalize, mended by us, in LeRobot: 11 frames equal ({folder.name})")


def _same_in_theirs(folder: Path, left: list[Episode]) -> None:
    theirs = LeRobotDataset("hotpolicy/check", root=folder)
    assert theirs.num_episodes == len(left)
    at = 0
    for index, one in enumerate(left):
        for i in range(len(one)):
            row = theirs[at]
            assert (row["index"].item(), row["episode_index"].item(), row["task"]) == (at, index, one.task)
            np.testing.assert_array_equal(row["action"].numpy(), one.action[i])
            image = row["observation.images.front"].numpy().transpose(1, 2, 0) * 255
            assert np.abs(image - one.images["front"][i]).mean() < 3
            at += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, help="keep LeRobot's video dataset here")
    arguments = parser.parse_args()
    print(f"lerobot {lerobot.__version__}, datasets {datasets.__version__}, av {av.__version__}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours_in_theirs(folder / "image", "image", "h264")
        ours_in_theirs(folder / "h264", "video", "h264")
        ours_in_theirs(folder / "av1", "video", "av1")
        theirs_in_ours(folder / "their-image", use_videos=False)
        theirs_in_ours(folder / "their-video", use_videos=True)
        mended_in_theirs(folder / "mended")
        lost_metadata_of_theirs(folder / "lost", folder / "their-video")
        killed_theirs(folder / "their-video-killed")
        killed_theirs(folder / "their-image-killed")
        if arguments.golden:
            shutil.copytree(folder / "their-video", arguments.golden)


if __name__ == "__main__":
    main()
