"""The recorder behind a feed: the loop's thread hands over, and after any fault the next episode is recorded."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import SPEC, episode, same

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.recorder import Recorder
from hotpolicy.finetune.storage import lane
from hotpolicy.robots.feed import Feed
from hotpolicy.runtime.errors import BadRequest, DatasetError
from hotpolicy.runtime.messages import Step


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    with Recorder.open(tmp_path, SPEC) as recorder:
        yield recorder


def hand_over(feed: Feed, seed: int, flush: bool = False) -> None:
    one = episode(seed)
    feed.begin(one.task)
    for step in one.steps():
        feed.step(step)
    feed.save(one.success)
    if flush:
        feed.flush()


def test_what_is_handed_over_is_sealed(recorder: Recorder, tmp_path: Path) -> None:
    feed = Feed(recorder)
    for seed in range(3):
        hand_over(feed, seed)
    feed.flush()
    feed.close()
    dataset = Dataset.open(tmp_path)
    for seed in range(3):
        same(dataset.episode(seed), episode(seed))


def test_a_full_disk_in_mid_episode(recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(image: np.ndarray) -> bytes:
        raise OSError(28, os.strerror(28))

    feed = Feed(recorder)
    hand_over(feed, 0)
    feed.flush()
    with monkeypatch.context() as patch:
        patch.setattr(lane, "to_png", full)
        with pytest.raises(DatasetError, match=r"episode 1 .*No space left on device"):
            hand_over(feed, 1, flush=True)
    feed.discard()
    hand_over(feed, 2)
    feed.flush()
    feed.close()
    assert len(Dataset.open(tmp_path)) == 2


class Slow:
    """A recorder that begins to take steps only when the gate opens."""

    def __init__(self, recorder: Recorder):
        self.recorder, self.gate = recorder, threading.Event()

    def step(self, step: Step) -> None:
        assert self.gate.wait(30)
        self.recorder.step(step)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.recorder, name)


def test_an_episode_given_up_before_its_fault_was_seen(recorder: Recorder, tmp_path: Path) -> None:
    slow = Slow(recorder)
    feed = Feed(slow)
    good = next(episode(0).steps())
    feed.begin(good.observation.task)
    feed.step(replace(good, action=good.action[:1]))  # will be refused
    feed.step(good)
    feed.discard()  # the loop broke off for a reason of its own
    slow.gate.set()
    feed.flush()  # which is not the fault of anything to come
    hand_over(feed, 1)
    feed.flush()
    feed.close()
    same(Dataset.open(tmp_path).episode(0), episode(1))


def test_a_viewer_that_failed_is_told_nothing_more(recorder: Recorder) -> None:
    feed = Feed(recorder, "drop")
    feed.begin("touch the red cube")
    feed.step(replace(next(episode(0).steps()), requested=np.zeros(1, np.float32)))
    feed.flush()
    feed.discard()
    hand_over(feed, 0)
    feed.close()
    assert len(recorder) == 0


def test_a_bad_step_is_raised_in_the_loop(recorder: Recorder) -> None:
    feed = Feed(recorder, "wait")
    feed.begin("touch the red cube")
    feed.step(replace(next(episode(0).steps()), requested=np.zeros(1, np.float32)))
    with pytest.raises(BadRequest, match="requested: expected 3 joints"):
        feed.flush()
    feed.close()


FIRST_EPISODE = """
import sys
from made_up import SPEC, episode
from hotpolicy.finetune.recorder import Recorder
one = episode(0)
with Recorder.open(sys.argv[1], SPEC, storage=sys.argv[2]) as recorder:
    before = set(sys.modules)
    recorder.begin(one.task)
    for step in one.steps():
        recorder.step(step)
    recorder.save(one.success)
    print(*sorted(set(sys.modules) - before))
"""


@pytest.mark.parametrize("storage", ["image", "video"])
def test_the_first_episode_imports_nothing(tmp_path: Path, storage: str) -> None:
    """An import holds the interpreter for tens of milliseconds, and with it the robot's loop."""
    ran = subprocess.run([sys.executable, "-c", FIRST_EPISODE, str(tmp_path), storage], cwd=Path(__file__).parent,
                         capture_output=True, text=True, check=True)  # fmt: skip
    assert ran.stdout.split() == []
