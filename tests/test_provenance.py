"""Which demonstrations made the action at this frame? Two jobs one after the other, a recorded episode of the last."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from calling import call
from tuning_parts import NEW, SPEC, episode, full_bundle, record

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.gate import Bounds
from hotpolicy.finetune.lessons import Span
from hotpolicy.finetune.recorder import Recorder
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.launch.job import Job
from hotpolicy.launch.provenance import of_frame, of_version, spans
from hotpolicy.launch.tuning import tune
from hotpolicy.runtime.errors import DatasetError, UnknownVersion
from hotpolicy.runtime.store import Store

LOOSE = Bounds(old_error=1000, old_error_room=1000, jerk=1e6, drift=100, slowdown=1000)


def done(job: Job) -> dict[str, object]:
    *_, last = tune(job)
    assert last["event"] == "sealed"
    assert last["passed"], last["reasons"]
    return last


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A store of base, first and second; the second from the first, on what was recorded since."""
    place = tmp_path_factory.mktemp("p")
    store = Store(place / "store")
    base = store.add(full_bundle(place / "sealed").folder)
    record(place / "data", range(14))
    config = TuneConfig(strategy="full", steps=150, rate=5e-3, evaluate_every=150, seed=0)
    data = (place / "data",)
    job = Job(store.root, "live", data, config, 1, True, 0, LOOSE, 60.0, span=Span(until=10), carry=True, name="a")
    first = str(done(job)["version"])
    more = dataclasses.replace(config, steps=30, seed=4, rate=2e-3)
    later = dataclasses.replace(job, base=first, name="b", span=Span(until=14, since=10), config=more)
    second = str(done(later)["version"])
    return place, [base, first, second]


def test_a_chain_of_two_deltas(taught: tuple[Path, list[str]]) -> None:
    place, (base, first, second) = taught
    found = of_version(Store(place / "store"), second)
    assert [entry["version"] for entry in found] == [second, first, base]
    assert [(entry["steps"], entry["seed"]) for entry in found[:2]] == [(30, 4), (150, 0)]
    data = Dataset.open(place / "data")
    for entry, count in zip(found, (14, 10), strict=False):
        (source,) = entry["datasets"]
        assert source["digest"] == data.first(count).digest  # as it was then, although it has grown since
        assert sorted((*source["episodes"], *source["held_out"])) == list(range(count))
    assert "optimiser state carried on for" in " ".join(found[0]["notes"])
    assert "carried" not in " ".join(found[1]["notes"])  # nobody made the base here
    assert found[2]["datasets"] == []


def test_a_job_that_is_done_is_not_done_again(taught: tuple[Path, list[str]]) -> None:
    place, (_, first, _) = taught
    config = TuneConfig(strategy="full", steps=60, seed=3)
    again = Job(place / "store", "live", (place / "data",), config, 1, True, 0, LOOSE, 60.0, name="a")
    (only,) = tune(again)
    assert (only["event"], only["version"], only["passed"]) == ("sealed", first, True)


def test_the_action_at_a_frame(
    taught: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, (base, first, second) = taught
    took_over = 5  # frames, at the end
    acted = episode(40)
    frames = len(acted.state)
    acted = dataclasses.replace(
        acted,
        versions=(second,) * (frames - took_over) + (None,) * took_over,
        intervention=acted.intervention | ([False] * (frames - took_over) + [True] * took_over),
    )
    with Recorder.open(place / "runs", SPEC) as recorder:
        recorder.write(episode(41, NEW))  # a demonstration
        recorder.write(acted)
    store = Store(place / "store")
    facts = of_frame(store, place / "runs", 1, 2)
    assert (facts["version"], facts["intervention"]) == (second, False)
    assert [entry["version"] for entry in facts["chain"]] == [second, first, base]
    assert facts["action"] == pytest.approx(acted.action[2].tolist(), abs=1e-3)
    by_hand = of_frame(store, place / "runs", 1, frames - 1)
    assert (by_hand["version"], by_hand["intervention"], by_hand["chain"]) == (None, True, [])
    assert of_frame(store, place / "runs", 0, 0)["version"] is None
    for at, named in (((2, 0), "episode: expected 0 to 1"), ((1, frames), "frame: expected 0 to")):
        with pytest.raises(DatasetError, match=named):
            of_frame(store, place / "runs", *at)

    options = ["--store", place / "store", "--dataset", place / "runs", "--episode", 1, "--frame", 2]
    code, out, err = call(capsys, monkeypatch, "provenance", *options)
    assert code == 0, err
    assert f"{second} acted" in out
    assert out.index(second) < out.index(first) < out.index(base)
    assert "episodes 0" in out
    code, out, _ = call(capsys, monkeypatch, "provenance", *options, "--json")
    assert json.loads(out) == facts


def test_what_there_is_not(taught: tuple[Path, list[str]]) -> None:
    with pytest.raises(UnknownVersion, match="ffff"):
        of_version(Store(taught[0] / "store"), "ffff")


def test_a_question_that_names_nothing_or_both(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for options in ([], ["live", "--dataset", tmp_path, "--episode", 0], ["--dataset", tmp_path]):
        code, _, err = call(capsys, monkeypatch, "provenance", *options)
        assert code == 2
        assert "expected" in err


def test_numbers_in_a_row() -> None:
    assert spans([5, 0, 1, 2]) == "0-2, 5"
    assert spans([]) == "none"
