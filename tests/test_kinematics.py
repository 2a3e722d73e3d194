"""Forward kinematics against published numbers and the simulator's, and small moves of the tool in every direction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotpolicy.robots.kinematics import CHAINS, DAMPING, SO101, VIRTUAL
from hotpolicy.robots.sim.kinematics import reach, units

BENT = np.array([10.0, -20.0, 30.0, 25.0, 15.0, 50.0])
angles = st.tuples(*[st.floats(-60, 60)] * 5).map(lambda five: np.array([*five, 50.0]))


def test_the_so101_is_where_its_model_says():
    assert SO101.where(np.zeros(6)) == pytest.approx([0.39136, 0, 0.22647], abs=1e-9)
    assert SO101.where(np.array([90, 0, 0, 0, 0, 0])) == pytest.approx([0.03884, -0.35252, 0.22647], abs=1e-6)
    lift = np.array([0.06924, -0.01828, 0.1166])
    elbow, wrist = np.array([0.09724, -0.01828, 0.22917]), np.array([0.23213, -0.01828, 0.23437])
    assert np.linalg.norm(elbow - lift) == pytest.approx(
        0.1160, abs=1e-4
    )  # published: upper arm, lower arm, to the tip
    assert np.linalg.norm(wrist - elbow) == pytest.approx(0.1350, abs=1e-4)
    assert np.linalg.norm(SO101.where(np.zeros(6)) - wrist) == pytest.approx(0.1605, abs=1e-3)


@pytest.mark.parametrize("place", [(0.15, 0.0, 0.05), (0.12, 0.1, 0.1), (0.2, -0.08, 0.02), (0.1, -0.05, 0.14)])
def test_the_virtual_arm_is_where_its_simulator_puts_it(place):
    positions = units(reach(*place, roll=0.4))
    assert VIRTUAL.where(positions) == pytest.approx(place, abs=2e-4)  # degrees are of 4095 ticks, turns of 4096


@pytest.mark.parametrize("name", CHAINS)
@given(positions=angles)
@settings(max_examples=30)
def test_a_small_turn_moves_the_tip_as_its_lever_says(name, positions):
    """The linear step of `turn` against finite differences of `where`."""
    chain, tiny = CHAINS[name], 1e-4
    tip, anchors, axes = chain._frames(positions)
    for joint in range(5):
        turned = positions.copy()
        turned[joint] += np.degrees(tiny)
        found = (chain.where(turned) - tip) / tiny
        assert found == pytest.approx(np.cross(axes[joint], tip - anchors[joint]), abs=1e-4)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("move", [(0.002, 0, 0), (0, 0.002, 0), (0, 0, -0.002), (-0.001, 0.001, 0.001)])
def test_the_tool_goes_where_it_is_sent(name, move):
    chain, positions = CHAINS[name], BENT.copy()
    start = chain.where(positions)
    for _ in range(10):
        positions = positions + chain.turn(positions, np.array(move))
    went = chain.where(positions) - start
    assert np.linalg.norm(went - 10 * np.array(move)) < 0.25 * np.linalg.norm(10 * np.array(move))
    assert went @ np.array(move) > 0.8 * 10 * np.dot(move, move)


@pytest.mark.parametrize("name", CHAINS)
def test_pitching_keeps_the_tip_nearly_where_it_is(name):
    chain, positions = CHAINS[name], BENT.copy()
    start, before = chain.where(positions), positions[1:4].sum()
    for _ in range(20):
        positions = positions + chain.turn(positions, np.zeros(3), 0.02)
    assert positions[1:4].sum() - before > np.degrees(0.2)
    assert np.linalg.norm(chain.where(positions) - start) < 0.02


@pytest.mark.parametrize("name", CHAINS)
@given(positions=angles, move=st.tuples(*[st.floats(-0.01, 0.01)] * 3))
@settings(max_examples=60)
def test_no_move_makes_the_joints_race(name, positions, move):
    """Also at a singularity: a step is bounded by half its length over the damping."""
    turns = np.radians(CHAINS[name].turn(positions, np.array(move)))
    assert np.linalg.norm(turns) <= np.linalg.norm(move) / (2 * DAMPING) + 1e-9
    assert turns[5] == 0  # the gripper is no hinge


def test_a_stretched_arm_comes_to_rest_at_the_end_of_its_reach():
    positions = np.array([0.0, 60, -80, -45, 0, 50])
    ways = []
    for _ in range(300):
        before = VIRTUAL.where(positions)
        positions = positions + VIRTUAL.turn(positions, np.array([0.004, 0, 0]))
        ways.append(np.linalg.norm(VIRTUAL.where(positions) - before))
    assert max(ways[-50:]) < 0.004
    assert np.isfinite(positions).all()
