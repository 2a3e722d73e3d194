"""Policies whose model is wider than the robot, sees smaller pictures and more of them, and reads sentencepiece:
from the sealed bundle to the answer, through deltas, golden observations, export and tuning."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import vocabulary
from random_policy import TINY, head_only, seal_delta, weights

from hotpolicy.finetune.episodes import Episode
from hotpolicy.finetune.frames import Frames
from hotpolicy.finetune.held_out import HeldOut
from hotpolicy.finetune.lessons import Lessons, gather
from hotpolicy.finetune.recorder import Recorder
from hotpolicy.finetune.samples import of_episode
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.finetune.trainer import Trainer
from hotpolicy.runtime.bundle import Bundle, seal
from hotpolicy.runtime.engine import load_engine
from hotpolicy.runtime.errors import BadRequest, BundleError, DatasetError, SwapRefused
from hotpolicy.runtime.messages import CameraSpec, Joint, Observation, RobotSpec
from hotpolicy.runtime.policy import Policy, load_policy
from hotpolicy.runtime.store import Store
from hotpolicy.runtime.transforms import ImageSlots, Quantile, Transforms, resize_with_pad
from hotpolicy.runtime.versions.checks import Checks, ask, check_actions
from hotpolicy.runtime.versions.golden import FILE, Golden
from hotpolicy.runtime.versions.loader import Loader, load_with

CONFIG = dataclasses.replace(TINY, vocabulary=vocabulary.SIZE, action_dim=8, horizon=4)
PI05 = dataclasses.replace(CONFIG, pi05=True)
SPEC = RobotSpec(
    joints=tuple(Joint(f"joint_{i}.pos", "deg", -500.0, 500.0) for i in range(3)),
    cameras=(CameraSpec("front", 48, 64), CameraSpec("wrist", 64, 48)),
    rate_hz=10.0,
)
ENTRY = {
    "cameras": ["front", "wrist"],
    "normalisation": "quantile",
    "state": {"q01": [-30.0, -20.0, 0.0], "q99": [30.0, 25.0, 50.0]},
    "action": {"q01": [-9.0, -8.0, 0.0], "q99": [9.0, 8.0, 50.0]},
    "eps": 1e-6,
    "relative": [True, True, False],
    "tokenizer": {"kind": "sentencepiece", "file": "tokenizer.model", "max_tokens": 48},
    "images": {"size": 32, "resize": "pad", "slots": ["front", None, "wrist"]},
    "width": 8,
    "horizon": 4,
    "prompt": "pi0",
}
TASK = "pick up the red cube"


def observation(seed: int = 0, task: str = TASK) -> Observation:
    rng = np.random.default_rng(seed)
    pictures = {
        camera.name: rng.integers(0, 256, (camera.height, camera.width, 3), np.uint8) for camera in SPEC.cameras
    }
    return Observation(pictures, rng.uniform(-20, 20, 3).astype(np.float32), task)


def noise(batch: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 4, 8), np.float32)


def sealed(folder, config=CONFIG, entry=ENTRY, spec=SPEC, files=None, golden: bool = True) -> Bundle:
    side = {"tokenizer.model": vocabulary.train()} if files is None else files
    if golden:
        side = {**side, FILE: Golden.of([observation(1), observation(2)], SPEC, noise(2)).to_bytes()}
    return seal(
        folder,
        kind="full",
        parent=None,
        model={"family": "pi0", "config": config.to_dict()},
        tensors=weights(config),
        spec=spec,
        transforms=entry,
        provenance={},
        files=side,
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return sealed(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def policy(bundle) -> Policy:
    return load_policy([bundle])


def test_the_robot_sees_its_own_joints_only(policy):
    seen = [observation(0), observation(1)]
    for one in seen:
        policy.check(one)
    start = noise(2)
    answer = policy.infer(seen, start)
    assert (answer.shape, answer.dtype) == ((2, 4, 3), np.float32)
    batch = policy.transforms.encode(seen, start)
    assert batch.state.shape == (2, 8)
    assert not batch.state[:, 3:].any()
    assert batch.images.shape == (2, 3, 32, 32, 3)
    assert batch.image_mask.tolist() == [[True, False, True]] * 2
    assert not batch.images[:, 1].any()
    np.testing.assert_array_equal(batch.images[0, 2], resize_with_pad(seen[0].images["wrist"], 32, 32))
    raw = policy.engine.infer(batch)[..., :3]
    scale = np.array([9.0, 8.0, 25.0]) + 5e-7
    by_hand = raw * scale + np.array([0, 0, 25.0]) + np.stack([one.state for one in seen])[:, None] * [1, 1, 0]
    np.testing.assert_allclose(answer, by_hand, atol=1e-4)
    assert policy.infer(seen).shape == (2, 4, 3)  # noise of its own


def test_an_empty_slot_changes_nothing(tmp_path, policy):
    without = {**ENTRY, "images": {**ENTRY["images"], "slots": ["front", "wrist"]}}
    other = load_policy([sealed(tmp_path, entry=without)])
    np.testing.assert_allclose(
        other.infer([observation()], noise(1)), policy.infer([observation()], noise(1)), atol=1e-4
    )


def test_a_picture_that_comes_fitted_is_the_same(policy):
    seen = observation()
    small = {name: resize_with_pad(image, 32, 32) for name, image in seen.images.items()}
    fitted = dataclasses.replace(seen, images=small)
    policy.check(fitted)
    np.testing.assert_array_equal(policy.infer([fitted], noise(1)), policy.infer([seen], noise(1)))


def test_pi05_hears_the_state(tmp_path):
    """pi0.5 has no other way to know it: the prompt must change with the state, and answers with the prompt."""
    entry = {**ENTRY, "prompt": "pi05", "relative": [False] * 3, "tokenizer": {**ENTRY["tokenizer"], "max_tokens": 90}}
    policy = load_policy([sealed(tmp_path, PI05, entry)])
    one, moved = observation(), dataclasses.replace(observation(), state=np.array([9, -9, 40], np.float32))
    batch = policy.transforms.encode([one, moved], noise(2))
    text = policy.transforms.tokenizer.processor.decode(batch.tokens[1][batch.token_mask[1]].tolist())
    assert text == f"Task: {TASK}, State: 166 62 204;\nAction: "
    first, second = policy.infer([one, moved], np.repeat(noise(1), 2, 0))
    assert np.abs(first - second).max() > 1e-4
    padded = load_policy([sealed(tmp_path, PI05, {**entry, "prompt": "pi05_padded"})])
    batch = padded.transforms.encode([moved], noise(1))
    text = padded.transforms.tokenizer.processor.decode(batch.tokens[0][batch.token_mask[0]].tolist())
    assert text == f"Task: {TASK}, State: 166 62 204 128 128 128 128 128;\nAction: "


def test_a_prompt_that_does_not_fit_is_refused_before_it_is_queued(policy):
    with pytest.raises(BadRequest, match=r"^task: expected at most 48 tokens, got \d+"):
        policy.check(observation(task="pick up the red cube " * 9))
    with pytest.raises(BadRequest, match=r"^task: expected an instruction"):
        policy.check(observation(task=" "))


def test_a_delta_inherits_the_vocabulary(tmp_path, bundle, policy):
    delta = seal_delta(tmp_path, bundle, head_only)
    second = seal_delta(tmp_path, delta, head_only, seed=2)
    derived = policy.derive(delta)
    assert derived.transforms is policy.transforms  # a quarter of a million pieces are not held twice
    assert derived.derive(second).transforms is policy.transforms
    assert Transforms.of_chain([bundle, delta, second]).to_dict() == ENTRY
    assert np.isfinite(load_policy([bundle, delta, second]).infer([observation()])).all()


def test_a_store_serves_it(tmp_path, bundle):
    """Loaded, asked its golden observations, and a delta tried beside it."""
    store = Store(tmp_path / "store")
    store.add(bundle.folder)
    delta = seal_delta(tmp_path / "made", bundle, head_only)
    store.add(delta.folder)
    loader = Loader(store, load_with("torch"), Checks(max_drift=None, max_slowdown=None, margin=9))
    first = loader.prepare(bundle.id, None, {})
    assert first.answers.actions.shape == (2, 4, 3)
    assert loader.prepare(delta.id, first, {bundle.id: first.policy}).verdict.golden == 2
    plain = sealed(tmp_path / "plain", golden=False)
    store.add(plain.folder)
    assert loader.prepare(plain.id, None, {}).verdict.golden == 0


def test_golden_observations_of_another_width_are_refused(policy):
    narrow = Golden.of([observation()], SPEC, np.zeros((1, 4, 3), np.float32))
    with pytest.raises(SwapRefused, match="width: golden noise is 3 wide, the model takes 8"):
        ask(policy, narrow)
    check_actions(policy, ask(policy, Golden.blank(SPEC, 4, width=8)), margin=9)


def test_cameras_of_different_sizes_share_a_golden_file(tmp_path):
    seen = [observation(1), observation(2)]
    (tmp_path / FILE).write_bytes(Golden.of(seen, SPEC, noise(2)).to_bytes())
    again = Golden.load(tmp_path / FILE).observations(SPEC)
    for one, other in zip(seen, again, strict=True):
        assert one.task == other.task
        np.testing.assert_array_equal(one.state, other.state)
        for name, image in one.images.items():
            np.testing.assert_array_equal(other.images[name], image)


@pytest.mark.parametrize("engine", ["onnx"])
def test_the_export_answers_the_same(bundle, policy, engine):
    pytest.importorskip("onnx")
    exported = load_engine(engine, bundle)
    tried = Policy(exported.exported.bundle, exported, exported.exported)
    np.testing.assert_allclose(
        tried.infer([observation()], noise(1)), policy.infer([observation()], noise(1)), atol=1e-3
    )
    joints = exported.exported.certificate["joints"]
    assert [joint["name"] for joint in joints] == [joint.name for joint in SPEC.joints]
    assert (exported.exported.folder / "tokenizer.model").read_bytes() == vocabulary.train()
    with pytest.raises(BundleError, match="no file 'other' was exported"):
        exported.exported.file("other")


@pytest.mark.parametrize(
    ("entry", "config", "told"),
    [
        ({"width": 9}, CONFIG, "transforms.width: expected 8, got 9"),
        ({"width": 2}, CONFIG, "transforms.width: expected at least 3, the joints, got 2"),
        ({"horizon": 5}, CONFIG, "transforms.horizon: expected 4, got 5"),
        ({"images": {**ENTRY["images"], "size": 24}}, CONFIG, "transforms.images.size: expected 32, got 24"),
        ({"images": {**ENTRY["images"], "resize": "none"}}, CONFIG, r"expected resize 'pad', because front gives \(48"),
        ({"cameras": ["front", "top"], "images": {**ENTRY["images"], "slots": ["front", "top"]}}, CONFIG,
         "transforms.cameras: top: the spec has front, wrist"),
        ({"cameras": ["front"]}, CONFIG, "transforms.images.slots"),
        ({}, dataclasses.replace(CONFIG, vocabulary=64), "tokenizer: knows 512 tokens, the model 64"),
        ({"state": {"q01": [0.0], "q99": [1.0]}}, CONFIG, "transforms.state"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_not_loaded(tmp_path, entry, config, told):
    with pytest.raises(BundleError, match=told):
        load_policy([sealed(tmp_path, config, {**ENTRY, **entry}, golden=False)])


def test_a_bundle_without_its_vocabulary_is_not_loaded(tmp_path):
    with pytest.raises(BundleError, match=r"tokenizer.file: .*no side file 'tokenizer.model'.*paligemma"):
        load_policy([sealed(tmp_path, files={}, golden=False)])
    broken = sealed(tmp_path / "broken", golden=False)
    (broken.folder / "tokenizer.model").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"tokenizer.model: digest mismatch"):
        load_policy([broken])


def episode(seed: int, frames: int = 6) -> Episode:
    seen = [observation(100 * seed + i) for i in range(frames)]
    state = np.stack([one.state for one in seen])
    images = {camera.name: np.stack([one.images[camera.name] for one in seen]) for camera in SPEC.cameras}
    return Episode(TASK, images, state, state + 1, state + 1, np.zeros(frames, bool), (None,) * frames, True)


def test_samples_are_fitted_as_serving_fits(policy):
    ours = policy.transforms
    taken = episode(1)
    samples = of_episode(taken, ours.images, ours.horizon)
    assert samples.images.shape == (6, 2, 32, 32, 3)
    frames = Frames.encode(samples, ours)
    batch = ours.encode([observation(100 + i) for i in range(6)], noise(6))
    filled, mask = ours.images.fill(frames.images.numpy())
    np.testing.assert_array_equal(filled, batch.images)
    np.testing.assert_array_equal(mask, batch.image_mask)
    np.testing.assert_array_equal(frames.tokens, batch.tokens)
    np.testing.assert_array_equal(frames.state, batch.state)
    assert frames.actions.shape == (6, 4, 8)
    assert not frames.actions[..., 3:].any()
    np.testing.assert_allclose(ours.decode(frames.actions.numpy(), samples.state), samples.actions, atol=1e-4)
    with torch.inference_mode():
        model = policy.engine.model
        trained = model.flow(frames.prefix(model, torch.arange(6)), frames.state, torch.from_numpy(noise(6)))
    np.testing.assert_allclose(trained, policy.engine.infer(batch), atol=1e-5)  # the empty slot is left out of training


def test_a_tuning_run_of_it(tmp_path, bundle, policy):
    """From a dataset at the cameras' sizes to averaged weights, with figures in the robot's own joints."""
    with Recorder.open(tmp_path / "data", SPEC) as recorder:
        for seed in range(4):
            recorder.begin(TASK)
            for step in episode(seed).steps():
                recorder.step(step)
            recorder.save(success=True)
    lessons = gather([bundle], [tmp_path / "data"], held_out=0.34)
    assert lessons.new.images.shape[1:] == (2, 32, 32, 3)
    config = TuneConfig(strategy="heads", steps=2, batch=4, draws=2, evaluate_every=2)
    trainer = Trainer(policy.engine.model, policy.transforms, SPEC, lessons, config)
    figures = [progress for progress in trainer.run() if progress.evaluation]
    assert trainer.outcome.steps == 2
    assert len(figures) == 2
    held = HeldOut(lessons.new_held_out, policy.transforms, SPEC)
    assert held.frames.actions.shape[2] == 8


def test_an_instruction_that_is_too_long_is_not_learned(policy):
    samples = of_episode(dataclasses.replace(episode(1), task="lift it " * 30), policy.transforms.images, 4)
    with pytest.raises(DatasetError, match="samples: task: expected at most 48 tokens"):
        Frames.encode(samples, policy.transforms)
    assert Lessons(samples).old is None


def test_an_entry_is_what_it_was(bundle):
    ours = Transforms.of_chain([bundle])
    assert ours.to_dict() == ENTRY
    assert isinstance(ours.state, Quantile)
    assert ours.images == ImageSlots(("front", None, "wrist"), 32, "pad")
    assert (ours.joints, ours.width, ours.slots) == (3, 8, 3)
