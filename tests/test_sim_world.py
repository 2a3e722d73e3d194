"""The simulated table: kinematics, tasks, the scripted operator, the camera."""

import numpy as np
import pytest

from hotpolicy.robots.sim import kinematics
from hotpolicy.robots.sim.demonstrations import demonstrate
from hotpolicy.robots.sim.scene import COLOURS
from hotpolicy.robots.sim.tasks import KNOWN_COLOURS, PHRASES, Task
from hotpolicy.robots.sim.world import World, virtual_spec
from hotpolicy.runtime.errors import BadRequest


@pytest.fixture(scope="module")
def world():
    return World()


def test_reach_is_exact(world):
    rng = np.random.default_rng(0)
    for _ in range(20):
        radius, angle, height = rng.uniform(0.12, 0.2), rng.uniform(-1, 1), rng.uniform(0.06, 0.15)
        target = np.array([radius * np.cos(angle), radius * np.sin(angle), height])
        world.scene.reset(kinematics.reach(*target), {})
        np.testing.assert_allclose(world.scene.tip(), target, atol=1e-6)


def test_ticks_and_units_agree_with_the_calibration():
    from hotpolicy.robots.sim.virtual_arm import virtual_calibration

    rng = np.random.default_rng(0)
    low, high = np.array([(j.low, j.high) for j in kinematics.JOINTS]).T
    for _ in range(50):
        joints = rng.uniform(low, high)
        ticks = kinematics.ticks(joints)
        for joint, tick, value in zip(kinematics.JOINTS, ticks, kinematics.units(joints), strict=True):
            read = virtual_calibration()[joint.name].to_value(int(tick), joint.unit)
            assert read == pytest.approx(value, abs=0.09)
        np.testing.assert_allclose(kinematics.joints_from_units(kinematics.units(joints)), joints)
        assert np.abs(kinematics.joints_from_ticks(ticks) - joints).max() < 2e-3


@pytest.mark.parametrize("verb", PHRASES)
def test_the_script_succeeds(world, verb):
    wins = sum(
        demonstrate(world, Task(verb, KNOWN_COLOURS[k % 4]), 300 + k, wide=False, perturb=False) is not None
        for k in range(8)
    )
    assert wins >= 6


def test_demonstrations_line_up(world):
    demo = demonstrate(world, Task("touch", "purple"), 3, wide=True, perturb=True)
    assert demo is not None
    frames = len(demo.state)
    assert demo.images.shape == (frames, 64, 64, 3)
    assert demo.action.shape == demo.state.shape == (frames, 6)
    assert demo.places.shape == (frames, 4, 2)


def test_a_seed_draws_the_same_scene(world):
    def snapshot(seed):
        world.reset(Task("lift", "blue"), seed)
        return world.scene.image().copy(), world.state()

    (a, sa), (b, sb), (c, _) = snapshot(5), snapshot(5), snapshot(6)
    assert (a == b).all()
    assert (sa == sb).all()
    assert (a != c).any()


def test_the_picture_shows_the_cubes(world):
    """Every cube on the table is seen where the camera projects it, unless the arm is in front."""
    world.reset(Task("touch", "red"), 11)
    image = world.scene.image()
    seen = 0
    for colour in world.present:
        right, down = world.scene.camera.project(world.scene.cube(colour))
        pixel = image[int(down * 64), int(right * 64)]
        rgb = np.array([float(v) for v in COLOURS[colour].split()[:3]]) * 255
        seen += bool(np.abs(pixel - rgb).max() < 3)
    assert seen >= len(world.present) - 1


def test_touching_another_cube_spoils_the_episode(world):
    world.reset(Task("touch", "red"), 1)
    world.scene.touched.append("blue")
    world.tick()
    assert world.referee.spoilt
    assert world.referee.over
    assert not world.referee.success


def test_unknown_instruction_names_what_is_known():
    with pytest.raises(BadRequest, match="touch, lift"):
        Task.parse("dance with the red cube")
    with pytest.raises(BadRequest, match="purple"):
        Task.parse("touch the pink cube")
    assert Task.parse("hover over the green cube") == Task("hover", "green")


def test_the_spec_is_so101s():
    spec = virtual_spec()
    assert spec.joints[0].name == "shoulder_pan.pos"
    assert spec.joints[5].unit == "percent"
    assert (spec.joints[5].low, spec.joints[5].high) == (0.0, 100.0)
