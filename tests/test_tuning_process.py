"""`hotpolicy finetune` as a process: it can be ended at any moment, and what it refuses is not in the store."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from tuning_parts import full_bundle, record

from hotpolicy.launch.processes import Child
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path) -> Path:
    store = Store(tmp_path / "store")
    store.add(full_bundle(tmp_path / "sealed").folder)
    record(tmp_path / "data", range(10))
    return tmp_path


def tuning(place: Path, *options: str) -> Child:
    arguments = ["finetune", str(place / "data"), "--store", str(place / "store"), "--trials", "0", "--json", *options]
    return Child("tuning", arguments, place / "tuning.log")


def kept(place: Path) -> list[str]:
    """What is in the store, but for K/V that the next run need not compute again."""
    return sorted(str(path) for path in (place / "store").rglob("*") if "prefixes" not in path.parts)


def events(child: Child) -> list[dict[str, object]]:
    return [json.loads(line) for line in child.lines]


def test_sigterm_ends_it_at_once_and_leaves_nothing(place: Path) -> None:
    before = kept(place)
    with tuning(place, "--steps", "1000000") as child:
        for line in range(5):
            assert child.next_line(line, timeout_s=60) is not None, child.last_words()
        child.process.send_signal(signal.SIGTERM)
        assert child.wait(timeout_s=10) == 143
    assert events(child)[-1]["event"] == "step"
    assert kept(place) == before


def test_killed_and_given_again_it_goes_on(place: Path) -> None:
    options = ("--steps", "400", "--save-every", "0.05", "--no-gate")
    with tuning(place, *options) as child:
        count = 0
        while (line := child.next_line(count, timeout_s=60)) is not None and json.loads(line).get("step") != 30:
            count += 1
        child.process.send_signal(signal.SIGKILL)
        assert child.wait(timeout_s=10) == -signal.SIGKILL
    with tuning(place, *options) as child:
        assert child.wait(timeout_s=60) == 0, child.last_words()
    again = events(child)
    (resumed,) = [int(str(event["step"])) for event in again if event["event"] == "resumed"]
    assert 0 < resumed <= 31
    assert [event["step"] for event in again if event["event"] == "step"] == list(range(resumed, 401))
    assert not list((place / "store" / "training").iterdir())  # it ended well
    with tuning(place, *options, "--seed", "1") as other:  # of another run nothing is taken
        assert other.wait(timeout_s=60) == 0
    assert "resumed" not in [event["event"] for event in events(other)]


def test_a_passed_candidate_is_in_the_store_with_its_verdict(place: Path) -> None:
    with tuning(place, "--steps", "150", "--rate", "0.005", "--strategy", "full") as child:
        assert child.wait(timeout_s=60) == 0, child.last_words()
    sealed = events(child)[-1]
    store = Store(place / "store")
    found = store.open(str(sealed["version"]))
    assert found.manifest.verdict is not None
    assert found.manifest.verdict["passed"] is True
    assert found.manifest.verdict["decided_by"] == "held-out action error"
    assert [path.name for path in (store.root / "candidates").iterdir()] == [found.id]  # no draft is left behind


def test_a_refused_candidate_is_sealed_with_the_reasons_but_not_added(place: Path) -> None:
    with tuning(place, "--steps", "2", "--rate", "0.9") as child:
        assert child.wait(timeout_s=60) == 2
    assert "refused by the gate" in child.last_words()
    sealed = events(child)[-1]
    store = Store(place / "store")
    assert [bundle.id for bundle in store.versions()] == [store.live()]
    refused = Bundle.open(str(sealed["folder"]))
    assert refused.manifest.verdict is not None
    assert refused.manifest.verdict["reasons"] == sealed["reasons"] != []
