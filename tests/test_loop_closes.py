"""The whole loop in miniature, as a user runs it: serve, session (record, tune, judge, swap, try), go back."""

import subprocess
import sys

import numpy as np
import pytest
from classroom import classroom, control, plan, state

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.launch.cli import main
from hotpolicy.runtime.client import ControlClient
from hotpolicy.runtime.store import Store

pytestmark = pytest.mark.timeout(300)
TASKS = ["hover over the red cube", "hover over the blue cube"]


def hotpolicy(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hotpolicy.launch.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=check)


@pytest.fixture
def refused(monkeypatch, capsys):
    """What a command says that ends with exit code 2; in this process, which has imported torch already."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["hotpolicy", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        return capsys.readouterr().err

    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a robot profile, a store, a running virtual arm and a running server."""
    with classroom(tmp_path_factory.mktemp("l")) as folder:
        yield folder


@pytest.fixture(scope="module")
def taught(place):
    """One round of a session; the version that came of it."""
    base = Store(place / "policies").live()
    done = hotpolicy("session", str(plan(place, tasks=TASKS, episodes=6)), "--steps", "12", check=False)
    assert done.returncode == 0, done.stderr
    assert "round  1" in done.stdout
    return base, Store(place / "policies").live()


def test_a_round_records_tunes_judges_and_swaps(place, taught):
    base, version = taught
    assert version != base
    with ControlClient(control(place)) as client:
        status = client.status()
        assert (status["live"], status["previous"]) == (version, base)
        assert status["server"]["counts"].get("engine_fault", 0) == 0
    dataset = Dataset.open(place / "session" / "dataset")
    assert len(dataset.episodes) == 6
    assert {dataset.episode(index).task for index in range(6)} == set(TASKS)


def test_the_version_says_where_it_came_from(place, taught):
    base, version = taught
    bundle = Store(place / "policies").open(version)
    manifest = bundle.manifest
    assert (manifest.kind, manifest.parent) == ("delta", base)
    assert all(name.startswith(("expert", "action", "state", "step")) for name in manifest.tensors)
    assert manifest.provenance["strategy"] == "expert"
    assert manifest.provenance["datasets"][0]["digest"] == Dataset.open(place / "session" / "dataset").digest
    assert len(manifest.provenance["curves"]["held_out"]) >= 2
    assert manifest.verdict["passed"]
    assert manifest.verdict["decided_by"] == "held-out action error"


def test_a_finished_session_has_nothing_left_to_do(place, taught):
    done = hotpolicy("session", str(place / "session.yaml"))
    assert done.stdout == ""
    (only,) = state(place / "session")["rounds"]
    assert (only["version"], only["outcome"], only["tries"], only["episodes"]) == (taught[1], "live", 2, 6)
    assert only["error"] < only["error_before"]
    assert (place / "session" / "session.png").read_bytes().startswith(b"\x89PNG")


def test_back_and_forward(place, taught):
    base, version = taught
    for live in (base, version):
        hotpolicy("rollback", "--control", control(place))
        assert Store(place / "policies").live() == live


def test_bad_input_to_finetune_is_one_line_and_changes_nothing(place, taught, refused):
    half = place / "half"
    (half / "meta").mkdir(parents=True)
    (half / "meta" / "info.json").write_text("{")
    for arguments, named in (
        ([str(place / "nowhere")], "nowhere"),
        ([str(half)], "info.json"),
        ([str(place / "session" / "dataset"), "--strategy", "magic"], "strategy"),
    ):
        said = refused("finetune", *arguments, "--store", str(place / "policies"), "--steps", "5")
        assert named in said
        assert len(said.strip().splitlines()) == 1, said
    assert Store(place / "policies").live() == taught[1]


def test_a_damaged_session_file_is_named(place, taught, refused, tmp_path):
    (tmp_path / "session.json").write_text('{"rounds": "many", "surprise": 1}')
    here = ("--robot", str(place / "robot.yaml"), "--store", str(place / "policies"))
    assert "session.json" in refused("session", str(tmp_path), *here, "--task", TASKS[0])


def test_corrections_become_a_version(place, taught):
    """The policy acts, a script takes over where it goes wrong and hands back; what it did then is learned from."""
    before = Store(place / "policies").live()
    correcting = plan(
        place, folder=str(place / "corrected"), tasks=["push the red cube away"], collect="correct",
        take_over="scripted", episodes=3, tries=1, tuning={"steps": 6},
    )  # fmt: skip
    done = hotpolicy("session", str(correcting), check=False)
    assert done.returncode == 0, done.stderr
    (only,) = state(place / "corrected")["rounds"]
    assert (only["outcome"], only["tries"]) == ("live", 1)
    dataset = Dataset.open(place / "corrected" / "dataset")
    assert len(dataset) >= 3
    acted = [dataset.episode(index, ()) for index in range(len(dataset))]
    for episode in acted:
        assert 0 < episode.intervention.sum() < len(episode)  # the policy acted, too
        assert {version for version in episode.versions if version} <= {before, only["version"]}
        assert {episode.versions[row] for row in np.flatnonzero(episode.intervention)} == {None}
    manifest = Store(place / "policies").open(only["version"]).manifest
    assert manifest.parent == before
    (source,) = manifest.provenance["datasets"]
    assert len(source["episodes"]) == 2
    assert len(source["held_out"]) == 1
    assert manifest.provenance["frames"] == sum(int(acted[index].intervention.sum()) for index in source["episodes"])
