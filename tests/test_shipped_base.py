"""The base policy that comes with hotpolicy: whole, small, and good at what it says."""

import numpy as np
import pytest

from hotpolicy.launch.nano import SHIPPED, VERBS
from hotpolicy.launch.rollouts import other_images, rollout
from hotpolicy.robots.sim.tasks import Task
from hotpolicy.robots.sim.world import virtual_spec
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.policy import load_policy


@pytest.fixture(scope="module")
def base() -> Bundle:
    return Bundle.open(SHIPPED)


@pytest.fixture(scope="module")
def policy(base):
    return load_policy([base])


def test_it_is_whole_and_small(base):
    base.verify()
    sizes = {file.name: file.stat().st_size for file in base.folder.iterdir()}
    assert sum(sizes.values()) < 8e6
    assert sizes["rehearsal.npz"] < 4e6
    parameters = sum(int(np.prod(info.shape)) for info in base.manifest.tensors.values())
    assert 1_000_000 < parameters < 2_000_000
    assert base.manifest.spec.to_dict() == virtual_spec().to_dict()


def test_it_says_what_it_was_checked_to_do(base):
    checks = base.manifest.provenance["checks"]
    sighted = checks.pop("as it is")
    assert sighted["touch"]["successes"] >= 98
    assert sighted["lift"]["successes"] >= 90
    for control in checks.values():
        assert all(skill["successes"] < 20 and skill["episodes"] == 100 for skill in control.values())


@pytest.mark.parametrize("verb", VERBS)
def test_it_does_what_it_says(policy, verb):
    """Ten fresh scenes: nine successes or more (at 0.98, fewer have a chance of 2 %)."""
    score = rollout(policy, Task(verb, "green"), 10, seed=123_000)
    assert score.successes >= 9


def test_it_looks(policy):
    assert rollout(policy, Task("lift", "red"), 10, seed=124_000, blind=other_images).successes <= 4


def test_the_same_noise_gives_the_same_actions(policy, base):
    from hotpolicy.runtime.versions.golden import Golden

    golden = Golden.of_chain([base])
    assert golden is not None
    seen = golden.observations(policy.spec)
    first, again = policy.infer(seen, golden.noise), policy.infer(seen, golden.noise)
    np.testing.assert_array_equal(first, again)
    one_by_one = np.concatenate(
        [policy.infer([one], noise[None]) for one, noise in zip(seen, golden.noise, strict=True)]
    )
    np.testing.assert_allclose(one_by_one, first, atol=2e-3)  # degrees
