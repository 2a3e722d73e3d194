"""What one run leaves for the next: fresh episodes count more, and the optimiser goes on where it was."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from test_tuning_training import LESSONS, SHORT
from tuning_parts import SPEC, TRANSFORMS, full_bundle, parent_model, record, samples

from hotpolicy.finetune import moments
from hotpolicy.finetune.lessons import Lessons, Span, gather
from hotpolicy.finetune.lora import is_adapter
from hotpolicy.finetune.trainer import Trainer
from hotpolicy.runtime.errors import DatasetError

FRESH = Lessons(new=samples(range(6)), fresh=10)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_fresh_frames_have_their_share(share: float) -> None:
    run = Trainer(parent_model(), TRANSFORMS, SPEC, FRESH, dataclasses.replace(SHORT, fresh=share, replay=0, batch=16))
    first_fresh = len(FRESH.new) - FRESH.fresh
    for _ in range(50):
        rows = run._batches.draw().rows
        assert len(rows) == 16
        if share:
            assert int((rows >= first_fresh).sum()) == 16 * share
        assert int(rows.max()) < len(FRESH.new)


def test_an_earlier_state_of_a_growing_dataset(tmp_path: Path) -> None:
    chain = [full_bundle(tmp_path / "sealed")]
    data = record(tmp_path / "data", range(6))
    before = gather(chain, [data])
    record(data, range(6, 10))
    again = gather(chain, [data], span=Span(until=6))
    assert again.sources == before.sources
    grown = gather(chain, [data], span=Span(since=6))
    kept = set(grown.sources[0].episodes)
    assert grown.fresh == 12 * len({index for index in kept if index >= 6}) > 0
    assert (grown.new.state[: -grown.fresh] == before.new.state).all()  # nobody held out comes in by growth
    with pytest.raises(DatasetError, match="expected at least 11 episodes, found 10"):
        gather(chain, [data], span=Span(until=11))


@pytest.mark.parametrize("name", ["heads", "lora"])
def test_moments_go_from_run_to_run(tmp_path: Path, name: str) -> None:
    config = dataclasses.replace(SHORT, strategy=name, steps=3, evaluate_every=3, lora_rank=2)
    run = Trainer(parent_model(), TRANSFORMS, SPEC, LESSONS, config)
    for _ in run.run():
        pass
    left = run.learner.moments()
    lasting = [tensor for tensor in run.learner.free() if not is_adapter(tensor)]  # adapters are folded away
    assert {key.partition("/")[2] for key in left} == {*lasting}
    assert (len(lasting) < len(run.learner.free())) == (name == "lora")
    moments.save(tmp_path, "v1", left)
    kept = moments.load(tmp_path, "v1")
    assert kept is not None
    after = Trainer(run.outcome.model, TRANSFORMS, SPEC, LESSONS, config, moments=kept)
    assert all(torch.equal(value, kept[key]) for key, value in left.items())
    assert after.notes == [f"optimiser state carried on for {len(lasting)} of {len(after.learner.free())} tensors"]
    for _ in after.run():
        pass
    done = after.learner.moments()
    assert {int(value) for key, value in done.items() if key.startswith("step/")} == {6}


def test_only_the_newest_is_kept_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    moments.save(tmp_path, "v1", {"step/a": torch.tensor(1.0)})
    moments.save(tmp_path, "v2", {"step/a": torch.tensor(2.0)})
    assert moments.load(tmp_path, "v1") is None
    assert [path.name for path in tmp_path.iterdir()] == ["v2.safetensors"]
    (tmp_path / "v2.safetensors").write_bytes(b"torn")
    assert moments.load(tmp_path, "v2") is None
