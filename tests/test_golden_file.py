"""Golden observations: what is written is read back, and damage is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hotpolicy.runtime.engine.echo_engine import SPEC, seal_echo
from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.messages import CameraSpec, RobotSpec
from hotpolicy.runtime.versions.golden import Golden


def golden(n: int = 3) -> Golden:
    rng = np.random.default_rng(1)
    return Golden(
        images=rng.integers(0, 255, (n, 1, 64, 64, 3), np.uint8),
        state=rng.standard_normal((n, 6), np.float32),
        tasks=np.array([f"touch cube {i}" for i in range(n)]),
        noise=rng.standard_normal((n, 8, 6), np.float32),
    )


def test_round_trip_in_a_bundle(tmp_path: Path) -> None:
    base = seal_echo(tmp_path, 1, golden=golden())
    child = seal_echo(tmp_path, 2, parent=base)
    for chain in ([base], [base, child]):
        read = Golden.of_chain(chain)
        assert read is not None
        for name in ("images", "state", "tasks", "noise"):
            np.testing.assert_array_equal(getattr(read, name), getattr(golden(), name))
    assert golden().to_bytes() == golden().to_bytes()
    assert Golden.of_chain([seal_echo(tmp_path, 3)]) is None


def test_the_nearest_golden_file_of_a_chain_counts(tmp_path: Path) -> None:
    base = seal_echo(tmp_path, 1, golden=golden(3))
    child = seal_echo(tmp_path, 2, parent=base, golden=golden(2))
    grandchild = seal_echo(tmp_path, 3, parent=child)
    assert len(Golden.of_chain([base, child, grandchild]) or ()) == 2


def test_observations_follow_the_spec() -> None:
    observations = golden().observations(SPEC)
    assert [o.task for o in observations] == ["touch cube 0", "touch cube 1", "touch cube 2"]
    assert observations[0].images["front"].shape == (64, 64, 3)
    assert type(observations[0].task) is str
    for cameras in ((), (CameraSpec("front", 32, 64),), (CameraSpec("a", 64, 64), CameraSpec("b", 64, 64))):
        with pytest.raises(BundleError, match="images"):
            golden().observations(RobotSpec(SPEC.joints, cameras, 10.0))
    with pytest.raises(BundleError, match="state: the spec has 5 joints"):
        golden().observations(RobotSpec(SPEC.joints[:5], SPEC.cameras, 10.0))


def test_blank_fits_its_spec() -> None:
    blank = Golden.blank(SPEC, horizon=4, n=2)
    assert len(blank.observations(SPEC)) == 2
    assert blank.noise.shape == (2, 4, 6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images", np.zeros((3, 1, 64, 64, 3), np.float32)),
        ("images", np.zeros((2, 1, 64, 64, 3), np.uint8)),
        ("state", np.zeros((3, 6))),
        ("state", np.full((3, 6), np.nan, np.float32)),
        ("state", np.zeros((3, 6, 1), np.float32)),
        ("tasks", np.zeros(3)),
        ("tasks", np.array([], "U1")),
        ("noise", np.zeros((3, 8, 5), np.float32)),
        ("noise", np.full((3, 8, 6), np.inf, np.float32)),
    ],
)
def test_wrong_arrays_are_named(name: str, value: np.ndarray) -> None:
    good = {key: getattr(golden(), key) for key in ("images", "state", "tasks", "noise")}
    with pytest.raises(BundleError, match="expected"):
        Golden(**{**good, name: value})


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    whole = golden().to_bytes()
    for content in (b"", b"junk", whole[:100], whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(BundleError, match="not an npz of golden observations"):
            Golden.load(path)
    np.savez(path, images=np.zeros(1))
    with pytest.raises(BundleError, match="expected images, state, tasks, noise"):
        Golden.load(path)
    np.savez(path, **{name: np.array([object()]) for name in ("images", "state", "tasks", "noise")})
    with pytest.raises(BundleError, match="not an npz"):
        Golden.load(path)
