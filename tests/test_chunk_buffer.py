"""One action per tick, never a stale one, never a wait."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotpolicy.runtime.chunks import ChunkBuffer, Chunking, Guiding
from hotpolicy.runtime.errors import BadReply
from hotpolicy.runtime.messages import ActionChunk


class FakeClock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def chunk(id: int, first: float = 0.0, horizon: int = 10, joints: int = 2, observed_at: float = 100.0) -> ActionChunk:
    actions = np.repeat(np.arange(first, first + horizon, dtype=np.float32)[:, None], joints, axis=1)
    return ActionChunk(actions, 10.0, observed_at, id, "v", "d")


def values(buffer: ChunkBuffer, count: int) -> list[float | None]:
    actions = [buffer.next() for _ in range(count)]
    return [None if action is None else float(action[0]) for action in actions]


def test_an_empty_buffer_asks_and_holds() -> None:
    buffer = ChunkBuffer(10.0)
    assert buffer.should_ask()
    assert buffer.stale()
    assert values(buffer, 2) == [None, None]
    assert (buffer.executed, buffer.holds) == (0, 2)


def test_actions_that_latency_made_stale_are_dropped() -> None:
    buffer = ChunkBuffer(10.0)
    buffer.asked(1)
    assert buffer.put(chunk(1))
    assert values(buffer, 4) == [0, 1, 2, 3]
    buffer.asked(2)
    assert not buffer.should_ask(), "an answer is awaited"
    assert values(buffer, 3) == [4, 5, 6]
    assert buffer.put(chunk(2, first=104))
    assert values(buffer, 2) == [107, 108]


def test_ticks_held_are_not_ticks_executed() -> None:
    buffer = ChunkBuffer(10.0)
    buffer.asked(1)
    assert values(buffer, 3) == [None] * 3
    buffer.put(chunk(1))
    assert values(buffer, 2) == [0, 1]


def test_late_foreign_and_repeated_chunks_change_nothing() -> None:
    buffer = ChunkBuffer(10.0)
    assert not buffer.put(chunk(1))
    buffer.asked(1)
    buffer.give_up()
    assert buffer.should_ask()
    buffer.asked(2)
    assert not buffer.put(chunk(1, first=50))
    assert buffer.put(chunk(2))
    assert not buffer.put(chunk(2, first=50))
    assert values(buffer, 2) == [0, 1]


def test_it_asks_early_by_the_measured_latency_cold_start_left_out() -> None:
    clock = FakeClock()
    buffer = ChunkBuffer(10.0, now=clock)
    for id, latency in enumerate((30.0, 0.25, 0.25), 1):
        buffer.asked(id)
        clock.time += latency
        buffer.put(chunk(id))
    assert buffer.lead() == 4  # 2.5 ticks rounded up, and one
    assert values(buffer, 5) == [0, 1, 2, 3, 4]
    assert not buffer.should_ask()
    buffer.next()
    assert buffer.should_ask()


def test_it_replans_before_the_end_when_told_to() -> None:
    buffer = ChunkBuffer(10.0, replan=5)
    buffer.asked(1)
    buffer.put(chunk(1, horizon=50))
    asks = [(buffer.should_ask(), buffer.next())[0] for _ in range(5)]
    assert asks == [False, False, False, True, True]


def test_an_observation_too_old_is_stale_whatever_is_left() -> None:
    clock = FakeClock()
    buffer = ChunkBuffer(10.0, max_age_s=0.5, now=clock)
    buffer.asked(1)
    buffer.put(chunk(1))
    assert values(buffer, 1) == [0]
    clock.time += 0.51
    assert buffer.stale()
    assert values(buffer, 1) == [None]


def test_a_new_chunk_takes_over_gradually() -> None:
    buffer = ChunkBuffer(10.0, blend=3)
    buffer.asked(1)
    buffer.put(chunk(1))
    buffer.asked(2)
    buffer.put(chunk(2, first=100))
    assert values(buffer, 5) == [25, 51, 77, 103, 104]


def test_a_chunk_older_than_its_horizon_leaves_nothing() -> None:
    buffer = ChunkBuffer(10.0)
    buffer.asked(1)
    buffer.put(chunk(1, horizon=10))
    buffer.asked(2)
    values(buffer, 8)
    assert buffer.put(chunk(2, first=100, horizon=5))
    assert values(buffer, 1) == [None]
    assert buffer.should_ask()


def test_clear_forgets_the_episode() -> None:
    buffer = ChunkBuffer(10.0)
    buffer.asked(1)
    buffer.put(chunk(1))
    buffer.asked(2)
    buffer.clear()
    assert not buffer.put(chunk(2))
    assert values(buffer, 1) == [None]


def test_a_chunk_for_another_arm_is_refused() -> None:
    buffer = ChunkBuffer(10.0)
    buffer.asked(1)
    buffer.put(chunk(1))
    buffer.asked(2)
    with pytest.raises(BadReply, match="expected 2 joints, got 3"):
        buffer.put(chunk(2, joints=3))
    assert values(buffer, 1) == [0]


@pytest.mark.parametrize(
    "arguments",
    [{"rate_hz": 0}, {"rate_hz": 1, "blend": -1}, {"rate_hz": 1, "replan": 0}, {"rate_hz": 1, "chunking": "none"}],
)
def test_settings_that_make_no_sense(arguments: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        ChunkBuffer(**arguments)


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=20), st.integers(1, 12))
@settings(max_examples=150, deadline=None)
def test_the_arm_never_goes_back_in_time(answers: list[tuple[int, bool]], horizon: int) -> None:
    """Action values are the tick they were planned for: each handed out must be the tick it is executed in."""
    buffer = ChunkBuffer(10.0)
    for id, (latency, comes) in enumerate(answers):
        asked_at = buffer.executed
        buffer.asked(id)
        for _ in range(latency):
            check_tick(buffer)
        if comes:
            buffer.put(chunk(id, first=asked_at, horizon=horizon))
        else:
            buffer.give_up()
        check_tick(buffer)


def check_tick(buffer: ChunkBuffer) -> None:
    tick = buffer.executed
    action = buffer.next()
    assert action is None or action[0] == tick


def answered(buffer: ChunkBuffer, id: int, delay: int, first: float = 0.0, guided: bool = False) -> None:
    """Ask, let `delay` ticks pass, and get the answer."""
    buffer.asked(id)
    values(buffer, delay)
    buffer.put(replace(chunk(id, first), guided=guided))


def test_sync_holds_while_it_waits_and_executes_each_chunk_from_its_start() -> None:
    buffer = ChunkBuffer(10.0, replan=3, chunking="sync")
    answered(buffer, 1, delay=2)
    assert values(buffer, 3) == [0, 1, 2]
    assert buffer.should_ask()
    buffer.asked(2)
    assert values(buffer, 2) == [None, None]
    buffer.put(chunk(2, first=100))
    assert values(buffer, 2) == [100, 101]
    assert not buffer.should_ask()
    assert buffer.rtc() is None


def test_rtc_says_what_is_being_executed() -> None:
    buffer = ChunkBuffer(10.0, chunking="rtc")
    assert buffer.rtc() is None, "there is nothing yet to carry on from"
    answered(buffer, 1, delay=3)
    values(buffer, 4)
    asked = buffer.rtc()
    assert asked is not None
    assert (asked.previous, asked.executed) == (1, 4)
    assert asked.delay == 3, "all that is known yet is the cold start"
    assert asked.execution_horizon == 6, "all that is left"
    answered(buffer, 2, delay=2)
    asked = buffer.rtc()
    assert asked is not None
    assert (asked.previous, asked.executed, asked.delay) == (2, 2, 2), "the cold start is left out"


def test_rtc_counts_no_ticks_that_were_not_executed() -> None:
    """The buffer runs dry while it waits: what the arm did not execute is not skipped in the new chunk."""
    buffer = ChunkBuffer(10.0, chunking="rtc")
    answered(buffer, 1, delay=0)
    values(buffer, 8)
    answered(buffer, 2, delay=5, first=8, guided=True)
    assert values(buffer, 1) == [10]
    asked = buffer.rtc()
    assert asked is not None
    assert (asked.previous, asked.executed, asked.delay) == (2, 3, 5)


def test_rtc_never_promises_more_than_is_left() -> None:
    buffer = ChunkBuffer(10.0, chunking="rtc", guiding=Guiding("linear", execution_horizon=6, max_weight=3.0))
    answered(buffer, 1, delay=5)
    asked = buffer.rtc()
    assert asked is not None
    assert (asked.schedule, asked.execution_horizon, asked.max_weight) == ("linear", 6, 3.0)
    values(buffer, 7)
    asked = buffer.rtc()
    assert asked is not None
    assert (asked.delay, asked.execution_horizon) == (3, 3)
    values(buffer, 3)
    assert buffer.rtc() is None, "nothing is left"


def test_a_guided_chunk_replaces_and_another_blends() -> None:
    for guided, expected in ((True, [100, 101, 102]), (False, [25, 51, 77])):
        buffer = ChunkBuffer(10.0, blend=3, chunking="rtc")
        answered(buffer, 1, delay=0)
        answered(buffer, 2, delay=0, first=100, guided=guided)
        assert values(buffer, 3) == expected


def test_a_new_episode_promises_nothing() -> None:
    buffer = ChunkBuffer(10.0, chunking="rtc")
    answered(buffer, 1, delay=1)
    values(buffer, 1)
    buffer.clear()
    assert buffer.rtc() is None


@given(
    st.lists(st.tuples(st.integers(0, 14), st.sampled_from(["guided", "unguided", "late", "lost"])), max_size=25),
    st.integers(1, 12),
    st.none() | st.integers(1, 12),
    st.sampled_from(["sync", "async", "rtc"]),
)
@settings(max_examples=300, deadline=None)
def test_whatever_the_latencies_each_action_is_executed_in_its_tick_and_once(
    answers: list[tuple[int, str]], horizon: int, replan: int | None, chunking: Chunking
) -> None:
    """Action values are the tick they were planned for. What is handed out is planned for the tick it is executed in,
    so none comes twice and none is left out; and what `rtc` tells is what the robot goes on with."""
    buffer = ChunkBuffer(10.0, replan=replan, chunking=chunking)
    plans: dict[int, int] = {}  # request id -> tick of its first action
    for id, (latency, fate) in enumerate(answers, 1):
        while not buffer.should_ask():
            check_tick(buffer)
        asked = buffer.rtc()
        if asked is not None:
            left = horizon - asked.executed
            assert plans[asked.previous] + asked.executed == buffer.executed
            assert 0 <= asked.delay <= left
            assert 0 < asked.execution_horizon <= left
        plans[id] = buffer.executed
        buffer.asked(id)
        for _ in range(latency):
            check_tick(buffer)
        answer = replace(chunk(id, first=plans[id], horizon=horizon), guided=fate == "guided")
        if fate == "lost":
            buffer.give_up()
            assert not buffer.put(answer)
        elif fate == "late":  # it comes after the one that was asked for instead
            buffer.give_up()
            plans[id + 1000] = buffer.executed
            buffer.asked(id + 1000)
            assert not buffer.put(answer)
            assert buffer.put(chunk(id + 1000, first=plans[id + 1000], horizon=horizon))
        else:
            assert buffer.put(answer)
        check_tick(buffer)
    for _ in range(horizon):
        check_tick(buffer)
