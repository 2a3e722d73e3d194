"""A script beside a policy: it takes over from one that goes wrong or gets nowhere, and hands back at the goal; the
policy then plans anew, in the same episode."""

from __future__ import annotations

import numpy as np
import pytest

from hotpolicy.robots.sources import SharedSource, SteppedPolicySource, Wish
from hotpolicy.robots.teleop.course import PATIENCE, STAY, Course
from hotpolicy.runtime.messages import ActionChunk, Observation

STEP = np.array([8.0, 8.0], np.float32)  # deg a tick
AIM = np.array([40.0, 0.0], np.float32)


def at(ticks: float) -> np.ndarray:
    """So many ticks before the aim."""
    return AIM - np.array([8 * ticks, 0], np.float32)


def watched(course: Course, *ticks: float, aim: np.ndarray = AIM) -> list[bool]:
    seen = []
    for left in ticks:
        course.watch(at(left), aim)
        seen.append(course.in_control)
    return seen


def test_a_policy_that_gets_there_is_left_alone() -> None:
    assert not any(watched(Course(STEP), 5, 4, 3, 2, 1.6, 1, 0.4, 0.1, *[0.2] * 20))


@pytest.mark.parametrize(
    ("ticks", "when"),
    [((5, 4, 3, 3.5, 4), 4), ((5, 4, *[3.9] * (PATIENCE + 2)), 1 + PATIENCE), ((2, 0.3, 0.4, 1.2), 3)],
    ids=["goes away", "gets nowhere", "leaves the goal"],
)
def test_it_is_taken_over_from(ticks: tuple[float, ...], when: int) -> None:
    assert watched(Course(STEP), *ticks).index(True) == when


def test_it_is_handed_back_to_at_the_goal() -> None:
    course = Course(STEP)
    assert watched(course, 3, 4, 2, 1)[-1]
    assert watched(course, *[0.2] * (STAY + 1)) == [True] * STAY + [False]
    assert watched(course, 0.3, 1.2) == [False, True]  # and taken over from again


def test_another_goal_is_not_a_wrong_way() -> None:
    course = Course(STEP)
    watched(course, 2, 1, 0.3)
    assert watched(course, 0.3, aim=AIM + 40) == [False]


class Client:
    """Answers with a chunk of four, its number in it."""

    def __init__(self) -> None:
        self.episodes = self.asked = 0

    def new_episode(self) -> None:
        self.episodes += 1

    def infer(self, observation: Observation, deadline_ms: float | None = None) -> ActionChunk:
        self.asked += 1
        return ActionChunk(np.full((4, 2), self.asked, np.float32), 10.0, 0.0, self.asked, "v", "d")


class Hand:
    in_control = False

    def act(self, observation: Observation) -> np.ndarray:
        return np.zeros(2, np.float32)

    def close(self) -> None:
        pass


def test_after_a_correction_the_policy_plans_anew_in_the_same_episode() -> None:
    client, hand = Client(), Hand()
    source = SharedSource(SteppedPolicySource(client, 4), hand)  # type: ignore[arg-type]
    seen = Observation({}, np.zeros(2, np.float32), "wave")
    source.begin("wave")

    def act() -> Wish:
        wish = source.act(seen)
        assert wish is not None
        assert wish.action is not None
        return wish

    assert [act().action[0] for _ in range(2)] == [1, 1]  # type: ignore[index]
    hand.in_control = True
    assert act().intervention
    hand.in_control = False
    assert act().action[0] == 2  # type: ignore[index]
    assert client.episodes == 1  # a version that was swapped in meanwhile has to wait for the next
