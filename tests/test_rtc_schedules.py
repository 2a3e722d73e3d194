"""Weights of real-time chunking, and what is done with too short a promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpolicy.runtime import rtc
from hotpolicy.runtime.errors import BadRequest
from hotpolicy.runtime.rtc import SCHEDULES, Schedule

COUNTS = {"delay": st.integers(0, 60), "execution_horizon": st.integers(0, 60), "horizon": st.integers(1, 60)}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("zeros", [1, 1, 0, 0, 0, 0, 0, 0]),
        ("ones", [1, 1, 1, 1, 1, 0, 0, 0]),
        ("linear", [1, 1, 0.75, 0.5, 0.25, 0, 0, 0]),
        ("exp", [1, 1, 0.487551, 0.188770, 0.041324, 0, 0, 0]),
    ],
)
def test_full_while_the_arm_goes_on_then_less_then_free(schedule: Schedule, expected: list[float]) -> None:
    weights = rtc.weights(schedule, 2, 5, 8)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, expected, atol=1e-6)


@given(schedule=st.sampled_from(SCHEDULES), **COUNTS)
def test_weights_fall_from_one_to_zero(schedule: Schedule, delay: int, execution_horizon: int, horizon: int) -> None:
    weights = rtc.weights(schedule, delay, execution_horizon, horizon)
    assert weights.shape == (horizon,)
    assert (weights[: min(delay, execution_horizon)] == 1).all()
    assert (weights[execution_horizon:] == 0).all()
    assert (np.diff(weights) <= 0).all()
    assert ((weights >= 0) & (weights <= 1)).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"schedule": "EXP"}, "schedule: expected one of zeros, ones, linear, exp, got 'EXP'"),
        ({"delay": -1}, "delay: expected a whole number from 0, got -1"),
        ({"delay": 1.0}, "delay: expected a whole number from 0, got 1.0"),
        ({"execution_horizon": -2}, "execution_horizon: expected a whole number from 0, got -2"),
        ({"horizon": 0}, "horizon: expected a whole number from 1, got 0"),
        ({"horizon": True}, "horizon: expected a whole number from 1, got True"),
    ],
)
def test_wrong_numbers_are_refused_by_name(wrong: dict[str, object], said: str) -> None:
    right: dict[str, object] = {"schedule": "linear", "delay": 1, "execution_horizon": 4, "horizon": 8}
    with pytest.raises(BadRequest) as error:
        rtc.weights(**{**right, **wrong})  # type: ignore[arg-type]
    assert str(error.value) == said


def test_a_short_promise_ends_where_the_arm_would_stay() -> None:
    left = np.array([[1, 2], [3, 4]], np.float32)
    np.testing.assert_array_equal(rtc.pad(left, 4), [[1, 2], [3, 4], [3, 4], [3, 4]])
    np.testing.assert_array_equal(rtc.pad(left, 1), [[1, 2]])
    assert rtc.pad(left.astype(np.float64), 4).dtype == np.float32


@pytest.mark.parametrize(
    ("actions", "said"),
    [
        (np.zeros((0, 6)), "actions: expected (at least 1, width), got (0, 6)"),
        (np.zeros(6), "actions: expected (at least 1, width), got (6,)"),
        (np.full((2, 6), np.nan), "actions: expected finite numbers"),
    ],
)
def test_a_promise_that_is_none_is_refused(actions: np.ndarray, said: str) -> None:
    with pytest.raises(BadRequest) as error:
        rtc.pad(actions, 8)
    assert str(error.value) == said
