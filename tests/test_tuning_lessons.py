"""What a run learns from: chunks of demonstrations, held-out episodes, rehearsal that deltas inherit and enlarge."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tuning_parts import NEW, OLD, SPEC, TRANSFORMS, episode, full_bundle, parent_model, record, samples

from hotpolicy.finetune.candidate import REHEARSED, seal_candidate
from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.lessons import Lessons, gather, split_frames
from hotpolicy.finetune.outcome import Outcome
from hotpolicy.finetune.replay import FILE, extend, load_rehearsal, rehearsal_bytes, rehearsal_of
from hotpolicy.finetune.samples import Samples, join, of_dataset, of_episode
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.finetune.trainer import Trainer
from hotpolicy.runtime.bundle import Bundle, seal
from hotpolicy.runtime.errors import BundleError, DatasetError
from hotpolicy.runtime.messages import CameraSpec, Joint
from hotpolicy.runtime.policy import load_policy
from hotpolicy.runtime.store import Store
from hotpolicy.runtime.transforms import ImageSlots
from hotpolicy.runtime.versions.chain import resolve

CONFIG = TuneConfig(steps=4, batch=4, draws=2, evaluate_every=4)


def tune(lessons: Lessons) -> Outcome:
    trainer = Trainer(parent_model(), TRANSFORMS, SPEC, lessons, CONFIG)
    for _ in trainer.run():
        pass
    return trainer.outcome


# samples


def test_a_chunk_is_the_next_actions_and_then_the_last_one() -> None:
    taken = episode(0, frames=6)
    rows = of_episode(taken, ImageSlots(("front",)), horizon=4)
    np.testing.assert_array_equal(rows.actions[0], taken.action[:4])
    np.testing.assert_array_equal(rows.actions[4], taken.action[[4, 5, 5, 5]])
    assert rows.images.shape == (6, 1, 16, 16, 3)
    assert rows.task_names() == (NEW,)


def test_spread_is_even_over_tasks() -> None:
    both = join([samples(range(8)), samples(range(100, 101), OLD)])
    few = both.spread(20)
    assert len(few) <= 20
    assert [int((few.tasks == name).sum()) for name in few.task_names()] == [10, 10]
    assert both.spread(10_000) is both


def test_a_dataset_of_another_robot_is_refused(tmp_path: Path) -> None:
    dataset = Dataset.open(record(tmp_path / "data", range(1)))
    other_joint = dataclasses.replace(SPEC, joints=(Joint("lift.pos", "deg", 0, 1), *SPEC.joints[1:]))
    other_camera = dataclasses.replace(SPEC, cameras=(CameraSpec("front", 32, 32),))
    other_rate = dataclasses.replace(SPEC, rate_hz=30)
    for spec, text in ((other_joint, "joints"), (other_camera, "camera front"), (other_rate, "rate: expected 30 Hz")):
        with pytest.raises(DatasetError, match=text):
            of_dataset(dataset, [0], spec, ImageSlots(("front",)), 4)


def test_parts_of_different_robots_do_not_join() -> None:
    one = samples(range(1))
    with pytest.raises(DatasetError, match="state: expected"):
        join([one, dataclasses.replace(one, state=one.state[:, :2])])


# lessons


def test_gather_splits_by_episode_and_leaves_failures_out(tmp_path: Path) -> None:
    data = record(tmp_path / "data", range(10))
    record(data, range(10, 12), success=False)
    chain = [full_bundle(tmp_path / "sealed")]
    lessons = gather(chain, [data], held_out=0.2)
    (source,) = lessons.sources
    assert source.failed == 2
    assert not set(source.episodes) & set(source.held_out)
    assert set(source.episodes) | set(source.held_out) <= set(range(10))
    assert lessons.new_held_out is not None
    assert len(lessons.new) == 12 * len(source.episodes)
    assert len(lessons.new_held_out) == 12 * len(source.held_out) > 0
    assert lessons.old is not None
    assert lessons.old.task_names() == (OLD,)
    assert source.digest == Dataset.open(data).digest


def test_sealed_datasets_can_be_replayed_beside_the_rehearsal_set(tmp_path: Path) -> None:
    new, older = record(tmp_path / "new", range(4)), record(tmp_path / "older", range(4, 8), task="nod twice")
    lessons = gather([full_bundle(tmp_path / "sealed")], [new], [older])
    assert lessons.old is not None
    assert lessons.old.task_names() == ("nod twice", OLD)
    assert lessons.new.task_names() == (NEW,)


def test_nothing_to_learn_from_is_said(tmp_path: Path) -> None:
    failures = record(tmp_path / "data", range(2), success=False)
    with pytest.raises(DatasetError, match="expected at least one episode"):
        gather([full_bundle(tmp_path / "sealed")], [failures])


# rehearsal


def test_a_rehearsal_set_reads_back_and_is_the_same_bytes_again(tmp_path: Path) -> None:
    old = samples(range(3), OLD)
    path = tmp_path / FILE
    path.write_bytes(rehearsal_bytes(old))
    read = load_rehearsal(path, joints=3)
    for field in dataclasses.fields(Samples):
        np.testing.assert_array_equal(getattr(read, field.name), getattr(old, field.name))
    assert rehearsal_bytes(read) == path.read_bytes()


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("images", lambda a: a.astype(np.float32)),
        ("images", lambda a: a[:, 0]),
        ("state", lambda a: a * np.float32("nan")),
        ("state", lambda a: a[:-1]),
        ("actions", lambda a: a[..., :2]),
        ("actions", lambda a: a.astype(np.float64)),
        ("tasks", lambda a: a.astype("S")),
    ],
)
def test_a_wrong_rehearsal_set_is_refused_by_its_array(tmp_path: Path, field: str, wrong) -> None:  # type: ignore[no-untyped-def]
    old = samples(range(1), OLD)
    arrays = {name.name: getattr(old, name.name) for name in dataclasses.fields(Samples)}
    arrays[field] = wrong(arrays[field])
    path = tmp_path / FILE
    np.savez_compressed(path, **arrays)
    with pytest.raises(BundleError, match=f"{FILE}: {field}: expected"):
        load_rehearsal(path)


def test_a_damaged_or_pickled_rehearsal_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_bytes(rehearsal_bytes(samples(range(1), OLD))[:-200])
    with pytest.raises(BundleError, match="not an npz of rehearsal frames"):
        load_rehearsal(path)
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(path, images=objects, state=objects, actions=objects, tasks=objects)
    with pytest.raises(BundleError, match="not an npz of rehearsal frames"):
        load_rehearsal(path)
    np.savez(path, images=np.zeros(1))
    with pytest.raises(BundleError, match="expected images, state, actions, tasks, got images"):
        load_rehearsal(path)


def test_the_set_grows_by_new_tasks_only_and_old_frames_stay() -> None:
    old = samples(range(100, 110), OLD)
    first = extend(old, samples(range(10)), per_task=30)
    assert {name: int((first.tasks == name).sum()) for name in first.task_names()} == {OLD: 120, NEW: 30}
    second = extend(first, samples(range(10, 20)), per_task=30)
    assert {name: int((second.tasks == name).sum()) for name in second.task_names()} == {OLD: 120, NEW: 30}
    assert any((row == first.images).all(axis=(1, 2, 3, 4)).any() for row in second.images[second.tasks == NEW])


def test_every_tenth_frame_of_each_task_is_held_out() -> None:
    both = join([samples(range(100, 105), OLD), samples(range(5))])
    kept, held = split_frames(both)
    assert held is not None
    assert (len(kept), len(held)) == (108, 12)
    assert held.task_names() == both.task_names()
    assert split_frames(both.pick(np.arange(3)))[1] is None


# candidate


def test_a_candidate_is_a_delta_that_loads_and_rehearses_what_it_learned(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    base = store.open(store.add(full_bundle(tmp_path / "sealed").folder))
    lessons = gather([base], [record(tmp_path / "data", range(6))])
    outcome = tune(lessons)
    sealed = seal_candidate(tmp_path / "out", [base], outcome, lessons, CONFIG)
    store.add(sealed.folder)
    chain = store.chain(sealed.id)
    assert [bundle.id for bundle in chain] == [base.id, sealed.id]
    groups = outcome.model.groups()
    assert {groups[name].partition(".")[0] for name in sealed.manifest.tensors} == {"heads", "expert"}
    tuned = {name: tensor.detach().numpy() for name, tensor in outcome.model.named_parameters()}
    for name, array in resolve(chain).items():
        np.testing.assert_array_equal(array, tuned[name])
    assert load_policy(chain).version == sealed.id
    rehearsed = rehearsal_of(chain)
    assert rehearsed is not None
    inherited = rehearsal_of([base])
    assert inherited is not None
    assert len(rehearsed) == len(inherited) + min(REHEARSED, len(lessons.new))
    learned = sealed.manifest.provenance
    assert learned["datasets"][0]["digest"] == lessons.sources[0].digest
    assert learned["steps"] == 4
    assert [at["step"] for at in learned["curves"]["held_out"]] == [0, 4]


def test_a_delta_without_its_own_set_inherits_the_parents(tmp_path: Path) -> None:
    base = full_bundle(tmp_path / "sealed")
    name, array = next(iter(base.tensors().items()))
    manifest = base.manifest
    delta: Bundle = seal(
        tmp_path / "sealed",
        kind="delta",
        parent=base.id,
        model=manifest.model,
        tensors={name: array + 1},
        spec=SPEC,
        transforms=manifest.transforms,
        provenance={},
    )
    inherited = rehearsal_of([base, delta])
    assert inherited is not None
    np.testing.assert_array_equal(inherited.images, samples(range(100, 104), OLD).images)
    assert rehearsal_of([full_bundle(tmp_path / "bare", rehearse=False)]) is None
