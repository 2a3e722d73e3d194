"""The whole loop in miniature, as a user runs it: serve, session (record, tune, judge, swap, try), go back."""

import json
import subprocess
import sys

import pytest
import yaml

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.launch.nano import SHIPPED
from hotpolicy.launch.processes import Child
from hotpolicy.launch.profile import find_profile
from hotpolicy.runtime.client import ControlClient
from hotpolicy.runtime.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
TASKS = ["hover over the red cube", "hover over the blue cube"]


def hotpolicy(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hotpolicy.launch.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=check)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a robot profile, a store, a running virtual arm and a running server."""
    folder = tmp_path_factory.mktemp("l")
    profile = yaml.safe_load(find_profile("virtual_so101").read_text())
    profile["arm"]["port"] = str(folder / "arm")
    profile["arm"]["calibration"] = str(find_profile("virtual_so101").parent / profile["arm"]["calibration"])
    profile["world"] = f"ipc://{folder}/world"
    profile["server"] = {"endpoint": f"ipc://{folder}/s", "control": f"ipc://{folder}/s.control"}
    (folder / "robot.yaml").write_text(yaml.safe_dump(profile, sort_keys=False))
    store = Store(folder / "policies")
    store.add(SHIPPED)
    serving = ["serve", "--store", str(store.root), "--endpoint", f"ipc://{folder}/s"]
    with (
        Child("arm", ["virtual-arm", "--robot", str(folder / "robot.yaml")], folder / "arm.log") as arm,
        Child("server", serving, folder / "server.log") as server,
    ):
        arm.wait_ready()
        server.wait_ready()
        yield folder


@pytest.fixture(scope="module")
def taught(place):
    """One round of a session; the version that came of it."""
    base = Store(place / "policies").live()
    done = hotpolicy(
        "session", str(place / "session"), "--robot", str(place / "robot.yaml"), "--store", str(place / "policies"),
        "--control", f"ipc://{place}/s.control", *[word for task in TASKS for word in ("--task", task)],
        "--episodes", "8", "--steps", "25", "--trials", "0", "--tries", "2", "--auto",
        "--old-error", "1000", check=False,  # so short a run forgets
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "round  1" in done.stdout
    return base, Store(place / "policies").live()


def test_a_round_records_tunes_judges_and_swaps(place, taught):
    base, version = taught
    assert version != base
    with ControlClient(f"ipc://{place}/s.control") as control:
        status = control.status()
        assert (status["live"], status["previous"]) == (version, base)
        assert status["server"]["counts"].get("engine_fault", 0) == 0
    dataset = Dataset.open(place / "session" / "dataset")
    assert len(dataset.episodes) == 8
    assert {dataset.episode(index).task for index in range(8)} == set(TASKS)


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
    done = hotpolicy(
        "session", str(place / "session"), "--robot", str(place / "robot.yaml"), "--store", str(place / "policies"),
        "--control", f"ipc://{place}/s.control", "--task", TASKS[0], "--tries", "2",
    )  # fmt: skip
    assert done.stdout == ""
    state = json.loads((place / "session" / "session.json").read_text())
    (only,) = state["rounds"]
    assert (only["version"], only["outcome"], only["tries"], only["episodes"]) == (taught[1], "live", 2, 8)
    assert only["error"] < only["error_before"]
    assert (place / "session" / "session.png").read_bytes().startswith(b"\x89PNG")


def test_back_and_forward(place, taught):
    base, version = taught
    for live in (base, version):
        hotpolicy("rollback", "--control", f"ipc://{place}/s.control")
        assert Store(place / "policies").live() == live


def test_bad_input_to_finetune_is_one_line_and_changes_nothing(place, taught):
    half = place / "half"
    (half / "meta").mkdir(parents=True)
    (half / "meta" / "info.json").write_text("{")
    for arguments, named in (
        ([str(place / "nowhere")], "nowhere"),
        ([str(half)], "info.json"),
        ([str(place / "session" / "dataset"), "--strategy", "magic"], "strategy"),
    ):
        done = hotpolicy("finetune", *arguments, "--store", str(place / "policies"), "--steps", "5", check=False)
        assert done.returncode == 2
        assert named in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert Store(place / "policies").live() == taught[1]


def test_a_damaged_session_file_is_named(place, taught, tmp_path):
    (tmp_path / "session.json").write_text('{"rounds": "many", "surprise": 1}')
    done = hotpolicy(
        "session", str(tmp_path), "--robot", str(place / "robot.yaml"), "--store", str(place / "policies"),
        "--task", TASKS[0], check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "session.json" in done.stderr
