"""A session's state machine: what may follow on what, what a person does meanwhile, and the file it survives in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpolicy.launch.sessions import file as files
from hotpolicy.launch.sessions.events import (
    TRANSITIONS,
    Baseline,
    Begin,
    Event,
    Judged,
    Leave,
    Live,
    Lost,
    NotLive,
    Promote,
    RolledBack,
    Tried,
    advance,
)
from hotpolicy.launch.sessions.state import Job, State, activity, may_begin, on_trial
from hotpolicy.runtime.errors import ConfigError, TuningError

PLAN = {"rounds": 2, "episodes": 4}
EVENTS: list[Event] = [
    Begin("base", 4, 1), Lost(), Judged("one", True), Judged("bad", False, ("worse",)), Promote(), Leave(), Live(),
    NotLive("slow"), Baseline("base"), Tried(True), RolledBack("one"),
]  # fmt: skip


def after(*events: Event) -> State:
    state = State("s")
    for event in events:
        state = advance(state, event)
    return state


ROUND: tuple[Event, ...] = (Begin("base", 4, 1), Judged("one", True), Promote(), Live())


def test_a_round_from_demonstrations_to_tries() -> None:
    state = State("s")
    assert activity(state, 0, **PLAN, tries=2) == "collect"
    assert not may_begin(state, 3, **PLAN)
    assert may_begin(state, 4, **PLAN)
    state = advance(state, Begin("base", 4, 1))
    assert state.job == Job("s-1", "base", until=4, since=0, seed=1)
    assert activity(state, 4, **PLAN, tries=2) == "collect"  # for the next round, while this one is tuned
    assert activity(state, 8, **PLAN, tries=2) == "wait"
    state = advance(state, Judged("one", True, (), 5.0, 2.0))
    assert (state.phase, state.job, state.learned) == ("asking", None, 4)
    state = advance(advance(state, Promote()), Live())
    for _ in range(2):
        assert activity(state, 8, **PLAN, tries=2) == "try"
        assert may_begin(state, 8, **PLAN)  # the next job does not wait for the tries
        state = advance(state, Tried(True))
    assert (state.rounds[0].wins, state.rounds[0].tries) == (2, 2)
    assert activity(state, 7, **PLAN, tries=2) == "collect"


def test_after_the_last_round_it_is_done() -> None:
    last = (Begin("one", 8, 2), Judged("two", False, ("forgotten",)))
    state = after(*ROUND, *last)
    assert state.begun == 2
    assert not may_begin(state, 100, **PLAN)
    assert activity(state, 8, **PLAN, tries=0) == "done"
    assert activity(state, 8, **PLAN, tries=1) == "try"  # the version of the first round, which is live still
    assert activity(state, 8, rounds=3, episodes=4, tries=0) == "collect"  # more rounds asked of the same session


def test_fresh_is_what_the_live_version_has_not_seen() -> None:
    refused = (Begin("one", 8, 2), Judged("two", False))
    third = after(*ROUND, *refused, Begin("one", 12, 3)).job
    assert third is not None
    assert (third.name, third.since, third.until) == ("s-3", 4, 12)
    undone = after(*ROUND, RolledBack("one"), Begin("base", 8, 2)).job
    assert undone is not None
    assert undone.since == 0


def test_what_is_rolled_back_is_not_tried_on() -> None:
    state = after(*ROUND)
    assert on_trial(state, 2) is not None
    assert on_trial(advance(state, RolledBack("one")), 2) is None
    assert on_trial(advance(state, RolledBack("another")), 2) is not None


def test_before_anything_is_taught() -> None:
    state = after(Baseline("base"))
    entry = on_trial(state, 1)
    assert entry is not None
    assert (entry.number, entry.version) == (0, "base")
    assert state.begun == 0
    assert state.published == []


def test_tries_are_of_a_version_that_is_live() -> None:
    with pytest.raises(TuningError, match="live before one is tried"):
        advance(State("s"), Tried(True))


def consistent(state: State) -> bool:
    numbers = [entry.number for entry in state.rounds if entry.number]
    return (
        (state.phase == "tuning") == (state.job is not None)
        and numbers == sorted(set(numbers))
        and all(entry.outcome != "passed" for entry in state.rounds[:-1])
        and (state.phase in ("asking", "publishing")) == bool(state.rounds and state.rounds[-1].outcome == "passed")
    )


@given(st.lists(st.sampled_from(EVENTS), max_size=40))
def test_whatever_happens_in_whatever_order(events: list[Event]) -> None:
    """An event that cannot happen is refused and changes nothing; all others leave a state that holds together and is
    the same after it was written and read."""
    state = State("s")
    for event in events:
        if (state.phase, type(event)) in TRANSITIONS and not (isinstance(event, Baseline) and state.rounds):
            try:
                state = advance(state, event)
            except TuningError:
                assert isinstance(event, Tried)
            assert consistent(state)
        elif not isinstance(event, Baseline):
            before = state
            with pytest.raises(TuningError, match="cannot happen while"):
                advance(state, event)
            assert state == before
    assert files.read(json.loads(files.written(state))) == state


def test_it_survives_on_disk(tmp_path: Path) -> None:
    state = after(*ROUND, Tried(True), Begin("one", 8, 2), Lost())
    files.save(tmp_path, state)
    assert files.load(tmp_path) == state
    assert [path.name for path in tmp_path.iterdir()] == ["session.json"]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"rounds": 3}', '{"name": "s", "phase": "dreaming", "rounds": [], "job": null}']
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "session.json").write_text(content)
    with pytest.raises(ConfigError, match=r"session\.json: "):
        files.load(tmp_path)
