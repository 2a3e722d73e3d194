"""What of a session is kept for its next chunk, for how long, and what the next one is held to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from serving import observation

from hotpolicy.runtime.messages import InferRequest, Rtc
from hotpolicy.runtime.serving.epochs import KEPT, Epochs

ROBOT = (b"peer", "robot")
CHUNK = np.arange(16, dtype=np.float32).reshape(8, 2)


def request(id: int, episode: int = 0, **rtc: int) -> InferRequest:
    asked = Rtc(**{"previous": 1, "executed": 3, "delay": 2, "execution_horizon": 4, **rtc}) if rtc else None
    return InferRequest(id, "robot", observation(), 0.0, 100.0, episode=episode, rtc=asked)


@pytest.fixture
def epochs() -> Epochs:
    kept = Epochs(most=3)
    kept.keep(ROBOT, request(1), "v1", CHUNK)
    return kept


def test_it_carries_on_from_what_is_left_and_the_last_action_is_repeated(epochs: Epochs) -> None:
    guide = epochs.guide(ROBOT, request(2, previous=1), "v1")
    assert guide is not None
    np.testing.assert_array_equal(guide.actions[:5], CHUNK[3:])
    np.testing.assert_array_equal(guide.actions[5:], np.repeat(CHUNK[-1:], 3, axis=0))
    assert guide.weight.tolist()[:2] == [1, 1]
    assert 1 > guide.weight[2] > guide.weight[3] > 0
    assert not guide.weight[4:].any()
    assert guide.limit == 2.0


def test_nothing_is_held_to_more_than_was_promised(epochs: Epochs) -> None:
    """With two actions left the padding has no weight, however far the robot asks to be held."""
    guide = epochs.guide(ROBOT, request(2, executed=6, delay=2**62, execution_horizon=2**62), "v1")
    assert guide is not None
    assert guide.weight.tolist() == [1, 1, 0, 0, 0, 0, 0, 0]


def test_what_is_executed_meanwhile_is_held_even_beyond_the_execution_horizon(epochs: Epochs) -> None:
    guide = epochs.guide(ROBOT, request(2, executed=0, delay=5, execution_horizon=1), "v1")
    assert guide is not None
    assert guide.weight.tolist() == [1, 1, 1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("asked", "version"),
    [
        (request(2), "v1"),  # without rtc
        (request(2, previous=7), "v1"),  # a chunk that was never made
        (request(2, executed=8), "v1"),  # nothing of it is left
        (request(2, executed=2**62), "v1"),
        (request(2, previous=1), "v2"),  # a swap in between
        (request(2, episode=1, previous=1), "v1"),  # another episode
    ],
)
def test_otherwise_there_is_nothing_to_carry_on_from(epochs: Epochs, asked: InferRequest, version: str) -> None:
    assert epochs.guide(ROBOT, asked, version) is None


@pytest.mark.parametrize(("asked", "version"), [(request(2, previous=1), "v2"), (request(2, 1, previous=1), "v1")])
def test_an_epoch_that_has_ended_does_not_come_back(epochs: Epochs, asked: InferRequest, version: str) -> None:
    assert epochs.guide(ROBOT, asked, version) is None
    assert epochs.guide(ROBOT, request(3, previous=1), "v1") is None


def test_a_chunk_of_another_version_ends_the_epoch(epochs: Epochs) -> None:
    epochs.keep(ROBOT, request(2), "v2", CHUNK + 100)
    epochs.keep(ROBOT, request(3), "v1", CHUNK + 200)
    for gone in (1, 2):
        assert epochs.guide(ROBOT, request(4, previous=gone), "v1") is None
    assert epochs.guide(ROBOT, request(4, previous=3), "v1") is not None


def test_a_newer_chunk_that_was_lost_on_its_way_does_not_end_the_one_in_use(epochs: Epochs) -> None:
    for id in range(2, 2 + KEPT - 1):
        epochs.keep(ROBOT, request(id), "v1", CHUNK + id)
    guide = epochs.guide(ROBOT, request(9, previous=1), "v1")
    assert guide is not None
    assert guide.actions[0, 0] == CHUNK[3, 0]
    epochs.keep(ROBOT, request(9), "v1", CHUNK)
    assert epochs.guide(ROBOT, request(10, previous=1), "v1") is None


@pytest.mark.parametrize("other", [(b"peer", "another"), (b"stranger", "robot")])
def test_sessions_do_not_see_each_other(epochs: Epochs, other: tuple[bytes, str]) -> None:
    assert epochs.guide(other, replace(request(2, previous=1), session=other[1]), "v1") is None


def test_a_goodbye_forgets(epochs: Epochs) -> None:
    epochs.drop(ROBOT)
    assert epochs.guide(ROBOT, request(2, previous=1), "v1") is None
    epochs.drop(ROBOT)


def test_many_sessions_are_not_all_kept(epochs: Epochs) -> None:
    for n in range(1000):
        epochs.keep((b"", str(n)), request(1), "v1", CHUNK)
        epochs.keep((b"", "busy"), request(1), "v1", CHUNK)
    assert len(epochs) == 3
    assert epochs.guide((b"", "busy"), request(2, previous=1), "v1") is not None
    assert epochs.guide(ROBOT, request(2, previous=1), "v1") is None
