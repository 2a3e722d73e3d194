"""The gate: each reason to refuse a candidate, one at a time, and what lets one pass."""

import time
from dataclasses import replace

import numpy as np
import pytest

from hotpolicy.finetune.curves import Curves, Evaluation
from hotpolicy.finetune.gate import Bounds, Trial, judge
from hotpolicy.finetune.held_out import Figures
from hotpolicy.launch.nano import SHIPPED
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.policy import load_policy
from hotpolicy.runtime.versions.golden import Golden


class Bent:
    """The shipped policy with its answers bent."""

    def __init__(self, policy, bend):
        self._policy, self._bend = policy, bend

    def __getattr__(self, name):
        return getattr(self._policy, name)

    def infer(self, observations, noise=None):
        return self._bend(self._policy.infer(observations, noise)).astype(np.float32)


@pytest.fixture(scope="module")
def live():
    return load_policy([Bundle.open(SHIPPED)])


@pytest.fixture(scope="module")
def golden():
    found = Golden.of_chain([Bundle.open(SHIPPED)])
    assert found is not None
    return found


def figures(error: float, percent: float = 1.0) -> Figures:
    return Figures(loss=0.1, error_deg=error, error_percent=percent, frames=40)


def curves(new=(5.0, 1.0), old=(1.0, 1.1)) -> Curves:
    evaluations = [
        Evaluation(step, {"new": figures(new[k])} if new else {}, {"old": figures(old[k])} if old else {})
        for k, step in enumerate((0, 350))
    ]
    return Curves(train=[1.0, 0.1], evaluations=evaluations)


GOOD = [Trial("new", 19, 20), Trial("old", 18, 20, live=0.95)]


def verdict(candidate, live, golden, trials=GOOD, course=None, bounds=None):
    return judge(candidate, live, golden, course or curves(), trials, bounds or Bounds())


def test_a_good_candidate_passes(live, golden):
    found = verdict(live, live, golden)
    assert found.passed, found.reasons
    assert found.decided_by == "success"
    assert found.figures["drift"] == 0
    assert found.figures["trials"][0]["interval_95"] == pytest.approx([0.7639, 0.9911], abs=1e-3)


REFUSED = {
    "new: 0.50": {"trials": [Trial("new", 10, 20)]},
    "old: 0.60 of 20 episodes, live 0.95": {"trials": [Trial("new", 20, 20), Trial("old", 12, 20, live=0.95)]},
    "held-out action error 6.00 deg, before tuning 5.00": {"trials": [], "course": curves(new=(5.0, 6.0))},
    "old: held-out action error 3.00 deg, live 1.00: forgotten": {"trials": [], "course": curves(old=(1.0, 3.0))},
    "nothing shows that the new tasks were learned": {"trials": [], "course": curves(new=None)},
}


def test_a_gripper_that_forgot_is_seen_by_itself(live, golden):
    """Measured: lifting fell from 1.0 to 0.0 while the arm's own error rose from 1.3 to 1.7 degrees only."""
    course = curves(old=(1.3, 1.7))
    course.evaluations[1] = Evaluation(350, course.evaluations[1].new, {"old": figures(1.7, percent=4.6)})
    found = verdict(live, live, golden, trials=[], course=course)
    assert found.reasons == ("old: held-out action error 4.60 percent, live 1.00: forgotten",)


@pytest.mark.parametrize(("reason", "given"), REFUSED.items(), ids=REFUSED)
def test_refused(live, golden, reason, given):
    found = verdict(live, live, golden, **given)
    assert not found.passed
    assert any(reason in one for one in found.reasons), found.reasons


BENT = {
    "NaN or infinity": lambda actions: actions * np.nan,
    "beyond limits": lambda actions: actions + 400,
    "drift": lambda actions: np.clip(actions + 60, -70, 70),
    "as rough as live's": lambda actions: actions + np.eye(6)[0] * 12 * (-1) ** np.arange(8)[:, None],
}


@pytest.mark.parametrize(("reason", "bend"), BENT.items(), ids=BENT)
def test_bent_answers_are_refused(live, golden, reason, bend):
    bounds = Bounds() if reason != "drift" else replace(Bounds(), jerk=1e9)
    found = verdict(Bent(live, bend), live, golden, bounds=bounds)
    assert not found.passed
    assert any(reason in one for one in found.reasons), found.reasons


def test_a_slow_candidate_is_refused(live, golden):
    def dawdle(actions):
        time.sleep(0.15 + 0.02 * len(actions))
        return actions

    found = verdict(Bent(live, dawdle), live, golden, bounds=replace(Bounds(), slowdown=1.0))
    assert [reason.split()[0] for reason in found.reasons] == ["latency"]


def test_without_trials_the_held_out_error_decides_and_says_so(live, golden):
    found = verdict(live, live, golden, trials=[])
    assert found.passed, found.reasons
    assert found.decided_by == "held-out action error"


@pytest.mark.parametrize(("after", "passed"), [(3.0, True), (5.0, False)])
def test_a_robot_that_turns_nothing_is_judged_by_percent(live, golden, after, passed):
    course = Curves(
        train=[1.0, 0.1],
        evaluations=[Evaluation(step, {"new": figures(0.0, p)}, {}) for step, p in ((0, 5.0), (350, after))],
    )
    found = verdict(live, live, golden, trials=[], course=course)
    assert found.passed is passed
    if not passed:
        assert found.reasons == ("new: held-out action error 5.00 percent, before tuning 5.00",)
