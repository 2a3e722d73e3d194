"""When a version in service is rolled back: the decision alone, without a server, a clock or a thread."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpolicy.runtime.messages import Joint, RobotSpec
from hotpolicy.runtime.versions.watch import ANSWERS, WINDOW, WINDOWS, Guard, Pace, Reach, Record, Trip, Watch

JOINTS = 6
SPEC = RobotSpec(tuple(Joint(f"joint_{n}.pos", "deg", -100.0, 100.0) for n in range(JOINTS)), (), 10.0)
GUARD = Guard()
KNOWN = Record(answers=ANSWERS, paces={1: Pace(10.0, 20.0), 4: Pace(30.0, 60.0)})
STILL = np.zeros((1, 8, JOINTS), np.float32)


def watch(before: Record | None = KNOWN, guard: Guard = GUARD) -> Watch:
    return Watch("v", SPEC, guard, before)


def beyond(part: float) -> np.ndarray:
    """One answer whose last joint leaves its range by this part of it."""
    actions = STILL.copy()
    actions[0, :, -1] = 100 + 200 * part
    return actions


def jump(part: float) -> np.ndarray:
    """One answer in which every joint moves on by this part of its range, once."""
    actions = STILL.copy()
    actions[0, 4:] = 200 * part - 100
    actions[0, :4] = -100
    return actions


def run(watch: Watch, answers: list[np.ndarray], ms: float = 10.0) -> tuple[int, Trip | None]:
    """How many batches were answered until the version had to go."""
    for n, actions in enumerate(answers):
        if trip := watch.note(actions, ms):
            return n + 1, trip
    return len(answers), None


def test_reach_is_measured_in_parts_of_the_range() -> None:
    both = Reach.of(np.concatenate([beyond(0.25), jump(0.4)]), np.full(JOINTS, -100.0), np.full(JOINTS, 100.0))
    assert both.beyond == pytest.approx([0.25, 0.0])
    assert both.step == pytest.approx([0.0, 0.4])
    assert Reach.of(STILL[:, :1], np.zeros(JOINTS), np.ones(JOINTS)).step == pytest.approx([0.0])


@pytest.mark.parametrize(("wild", "cause"), [(beyond, "limits"), (jump, "steps")])
def test_a_version_that_turns_wild_goes_after_a_few_answers(wild: object, cause: str) -> None:
    bound = {"limits": GUARD.margin, "steps": GUARD.step}[cause]
    assert bound is not None
    assert run(watch(), [wild(bound * 0.99)] * 500) == (500, None)  # type: ignore[operator]
    after, trip = run(watch(), [STILL] * 50 + [wild(bound * 1.01)] * 20)  # type: ignore[operator]
    assert trip is not None
    assert trip.cause == cause
    assert 50 + GUARD.trips <= after <= 60
    assert f"expected at most {bound:.0%}" in trip.reason


def test_one_wild_answer_now_and_then_is_no_reason() -> None:
    assert run(watch(), ([STILL] * 60 + [beyond(3.0)]) * 20)[1] is None


def test_what_the_version_before_did_as_well_is_no_reason() -> None:
    used_to = watch(Record())
    answers = ([jump(0.5)] + [STILL] * 2) * 100
    run(used_to, answers)
    known = used_to.record()
    assert (known.answers, known.trips["steps"]) == (ANSWERS, 33)
    assert run(watch(known), answers) == (300, None)
    assert run(watch(replace(known, trips={})), answers)[1] is not None


def test_a_version_before_that_is_hardly_known_excuses_much() -> None:
    assert run(watch(Record()), [beyond(3.0)] * 300)[1] is None
    assert run(watch(None), [beyond(3.0)] * 300, ms=1e6)[1] is None
    tried = watch().record(golden=np.repeat(STILL, 8, axis=0))  # eight golden answers, none of them wild
    assert tried.answers == 8
    after, trip = run(watch(tried), [beyond(3.0)] * 100)
    assert trip is not None
    assert after > 10
    assert watch().record(golden=beyond(3.0)).trips["limits"] == 1


def test_bounds_can_be_switched_off() -> None:
    off = Guard(margin=None, step=None, slowdown=None)
    assert run(watch(guard=off), [beyond(3.0), jump(0.9)] * 200, ms=1e6)[1] is None
    assert watch(guard=off).record(golden=beyond(3.0)).trips["limits"] == 0


def late(size: int, ms: float, batches: int) -> tuple[int, Trip | None]:
    return run(watch(), [np.repeat(STILL, size, axis=0)] * batches, ms)


def test_a_slow_version_goes_after_several_windows() -> None:
    after, trip = late(1, 20.0 * 4 + 5.1, 500)
    assert (after, trip and trip.cause) == (WINDOW * WINDOWS, "latency")
    assert trip is not None
    assert "took 20.0 ms, expected at most 85.0 ms" in trip.reason
    assert late(1, 20.0 * 4 + 5.0, 500)[1] is None


def test_batches_are_compared_with_those_of_their_own_size() -> None:
    assert late(4, 100.0, 500)[1] is None  # four robots came; one alone would be late
    assert late(4, 246.0, 500)[1] is not None
    assert late(2, 1e6, 500)[1] is None  # nobody knows how long the version before took for two


def test_late_windows_must_follow_each_other() -> None:
    seen = watch()
    slow, quick = [STILL] * WINDOW, [STILL] * WINDOW
    for _ in range(10):
        assert run(seen, slow * 2, ms=500.0)[1] is None
        assert run(seen, quick, ms=10.0)[1] is None


times = st.floats(5.0, 25.0)  # ms, of a healthy version: within what the bound (4 times and 5 ms more) leaves to each


@given(
    old=st.lists(times, min_size=WINDOW, max_size=200),
    windows=st.lists(
        st.tuples(st.lists(times, min_size=6, max_size=WINDOW), st.floats(0, 1e7), st.randoms(use_true_random=False)),
        min_size=1,
        max_size=20,
    ),
)
def test_a_healthy_version_is_never_rolled_back_for_its_latency(old: list[float], windows: list) -> None:
    """Whatever a busy machine does to up to 14 of 20 batches, in every window."""
    before = watch(Record())
    for ms in old:
        before.note(STILL, ms)
    seen = watch(before.record())
    for healthy, spike, order in windows:
        batches = healthy + [spike] * (WINDOW - len(healthy))
        order.shuffle(batches)
        for ms in batches:
            assert seen.note(STILL, ms) is None


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 0.2), st.integers(1, 4))
def test_a_version_like_the_one_before_is_never_rolled_back_for_its_actions(seed: int, wild: float, size: int) -> None:
    """Both answer wildly at the same rate, by chance."""
    rng = np.random.default_rng(seed)

    def batch() -> np.ndarray:
        return np.concatenate([beyond(3.0) if rng.random() < wild else STILL for _ in range(size)])

    before = watch(Record())
    for _ in range(ANSWERS):
        before.note(batch(), 10.0)
    seen = watch(before.record())
    assert all(seen.note(batch(), 10.0) is None for _ in range(300))
