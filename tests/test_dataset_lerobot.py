"""A dataset that LeRobot 0.6.1 recorded (two episodes, AV1 video) must read as what went into it.

tests/compat/lerobot_dataset_check.py made it, and checks the other direction too.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from made_up import JOINTS, SPEC, episode

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.runtime.messages import CameraSpec

FOLDER = Path(__file__).parent / "golden/lerobot_dataset"


def test_a_dataset_recorded_by_lerobot_is_read() -> None:
    spec = replace(SPEC, cameras=(CameraSpec("front", 64, 96),))
    dataset = Dataset.open(FOLDER)
    assert (len(dataset), dataset.rate_hz, dataset.joints) == (2, 10, JOINTS)
    assert dataset.cameras == spec.cameras
    assert (dataset.spec, dataset.versions) == (None, ())
    for index, one in enumerate([episode(0, 6, spec=spec), episode(1, 5, "lift the blue cube", spec)]):
        read = dataset.episode(index)
        assert (read.task, read.success, read.versions) == (one.task, None, (None,) * len(one))
        np.testing.assert_array_equal(read.state, one.state)
        np.testing.assert_array_equal(read.action, one.action)
        np.testing.assert_array_equal(read.requested, one.action)
        np.testing.assert_array_equal(read.intervention, one.intervention)
        assert np.abs(read.images["front"].astype(int) - one.images["front"]).mean() < 3
    assert dataset.episodes[1].interventions == int(one.intervention.sum())
    assert dataset.episodes[1].clips["front"].start == 0.6  # both episodes lie in one mp4
    assert dataset.stats()["action"]["count"].tolist() == [11]
    assert len(dataset.digest) == 64
