"""Where a torch engine computes, in which precision, on which thread; and the recorder's part of CUDA, without CUDA."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from promised import promised
from random_policy import (
    TINY,
    TINY_PI05,
    TINY_SIGLIP,
    seal_delta,
    seal_random,
    spec_of,
    transforms_of,
    weights,
)

from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.engine import Batch, processor, torch_place
from hotpolicy.runtime.engine.torch_engine import TorchEngine, even
from hotpolicy.runtime.engine.torch_graphs import MOST, Recordings
from hotpolicy.runtime.engine.torch_place import Place, TorchOptions
from hotpolicy.runtime.engine.torch_weights import build_model, tensors_from_numpy
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.messages import Observation
from hotpolicy.runtime.model.pi0 import Pi0, Pi0Config
from hotpolicy.runtime.policy import load_policy
from hotpolicy.runtime.versions.chain import resolve

CPU = torch.device("cpu")
CONFIGS = {"stem": TINY, "siglip": TINY_SIGLIP, "pi05": TINY_PI05}


def made_up(config: Pi0Config, rows: int = 1, words: int = 6, seed: int = 0) -> Batch:
    draw, size = np.random.default_rng(seed), config.vision.image_size
    return Batch(
        images=draw.integers(0, 256, (rows, 3, size, size, 3), np.uint8),
        image_mask=np.array([[True, False, True]] * rows),
        tokens=draw.integers(1, config.vocabulary, (rows, words)),
        token_mask=np.arange(words)[None] < np.arange(2, 2 + rows)[:, None],
        state=draw.standard_normal((rows, config.action_dim), np.float32),
        noise=draw.standard_normal((rows, config.horizon, config.action_dim), np.float32),
    )


def model_of(config: Pi0Config, dtype: torch.dtype = torch.float32) -> Any:
    tensors = {name: tensor.to(dtype) for name, tensor in tensors_from_numpy(weights(config)).items()}
    return build_model({"family": "pi0", "config": config.to_dict()}, tensors)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"device": "gpu"}, "device: expected one of auto, cpu, cuda, got 'gpu'"),
        ({"dtype": "fp16"}, "dtype: expected one of auto, fp32, bf16, got 'fp16'"),
        ({"threads": 0}, "threads: expected a number from 1 to 256, got 0"),
    ],
)
def test_options_are_checked_at_the_door(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        TorchOptions(**wrong)
    assert said in str(error.value)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device: expected a CUDA device"):
        Place.choose(TorchOptions(device="cuda"), model_of(TINY))
    assert Place.choose(TorchOptions(), model_of(TINY)).device == CPU


@pytest.mark.parametrize(
    ("asked", "stored", "native", "cuda", "chosen"),
    [
        ("auto", torch.float32, True, False, torch.float32),  # exact as it was stored
        ("auto", torch.bfloat16, True, False, torch.bfloat16),
        ("auto", torch.bfloat16, False, False, torch.float32),  # bf16 would be emulated
        ("auto", torch.float32, False, True, torch.bfloat16),
        ("bf16", torch.float32, False, False, torch.bfloat16),
        ("fp32", torch.bfloat16, True, True, torch.float32),
    ],
)
def test_precision_by_device(
    asked: str, stored: torch.dtype, native: bool, cuda: bool, chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_place, "native_bf16", lambda: native)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    place = Place.choose(TorchOptions(dtype=asked), model_of(TINY, stored))
    assert (place.dtype, place.device.type) == (chosen, "cuda" if cuda else "cpu")


def test_a_large_model_gets_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Place.choose(TorchOptions(device="cpu"), model_of(TINY)).threads == 1
    monkeypatch.setattr(processor, "SMALL", 10)
    monkeypatch.setattr(processor, "cores", lambda: 5)
    assert Place.choose(TorchOptions(device="cpu"), model_of(TINY)).threads == 5
    assert Place.choose(TorchOptions(device="cpu", threads=3), model_of(TINY)).threads == 3


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_bf16_keeps_what_it_would_harm_in_fp32(config: Pi0Config) -> None:
    exact = model_of(config)
    mixed = Place(CPU, torch.bfloat16, 1).settle(exact)
    kept = {name for name, parameter in mixed.named_parameters() if parameter.dtype == torch.float32}
    assert {parameter.dtype for parameter in exact.parameters()} == {torch.float32}  # another's model is left alone
    groups = exact.groups()
    assert {name for name, group in groups.items() if group == "heads"} <= kept
    assert {name for name in groups if "input_layernorm" in name or "post_attention_layernorm" in name} <= kept
    assert not {name for name in kept if ("_proj" in name and ".self_attn." in name) or ".mlp." in name}
    assert all(mixed.get_parameter(name) is exact.get_parameter(name) for name in kept)  # shared, not copied
    batch = made_up(config, rows=2)
    close = TorchEngine(mixed, place=Place(CPU, torch.bfloat16, 1)).infer(batch)
    answer = TorchEngine(exact).infer(batch)
    assert close.dtype == np.float32
    assert 0 < np.abs(close - answer).max() < 0.05 * np.abs(answer).max()


def test_weights_that_are_in_place_stay_where_they_are() -> None:
    model = model_of(TINY)
    assert Place(CPU, torch.float32, 1).settle(model) is model


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_delta_shares_what_it_does_not_change_and_knows_time_anew(config: Pi0Config, tmp_path: Path) -> None:
    base = seal_random(tmp_path, config)
    delta = seal_delta(tmp_path, base, lambda name: name.startswith(("time_mlp", "action_time_mlp", "expert_norm")))
    parent = TorchEngine.load(base, dtype="bf16", threads=1)
    child = parent.derive(delta)
    assert child.place == parent.place
    changed = set(delta.manifest.tensors)
    for name, parameter in child.model.named_parameters():
        shared = parameter.data_ptr() == parent.model.get_parameter(name).data_ptr()
        assert shared != (name in changed)
    whole = {"family": "pi0", "config": config.to_dict()}, tensors_from_numpy(resolve([base, delta]))
    batch = made_up(config)
    before = parent.infer(batch)
    anew = TorchEngine(build_model(*whole), TorchOptions(dtype="bf16"))
    np.testing.assert_array_equal(child.infer(batch), anew.infer(batch))
    assert np.abs(child.infer(batch) - before).max() > 1e-3
    np.testing.assert_array_equal(parent.infer(batch), before)


def test_one_thread_computes_with_the_threads_asked_for(tmp_path: Path) -> None:
    engine = TorchEngine.load(seal_random(tmp_path, TINY), threads=3, traced=False)
    seen: set[tuple[int, int]] = set()
    engine.model.action_out_proj.register_forward_hook(
        lambda *_: seen.add((threading.get_ident(), torch.get_num_threads()))
    )
    batch = made_up(TINY)
    with ThreadPoolExecutor(4) as pool:  # as the loader and the inference thread do
        answers = list(pool.map(engine.infer, [batch] * 8))
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
    ((ident, threads),) = seen
    assert threads == 3
    assert ident != threading.get_ident()


def test_what_the_thread_raises_reaches_the_caller(tmp_path: Path) -> None:
    engine = TorchEngine.load(seal_random(tmp_path, TINY))
    batch = made_up(TINY)
    assert np.isfinite(engine.infer(batch)).all()
    wrong = Batch(batch.images, batch.image_mask, batch.tokens + 10_000, batch.token_mask, batch.state, batch.noise)
    with pytest.raises((IndexError, RuntimeError), match=r"^(RuntimeError: )?index out of range in self$"):
        engine.infer(wrong)
    assert np.isfinite(engine.infer(batch)).all()  # and the thread lives


class Replay:
    """A recorder for the CPU: a replay computes again into the first result's memory, as a graph would."""

    def __init__(self) -> None:
        self.recorded = 0

    def record(self, compute: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        self.recorded += 1
        result = compute()

        def replay() -> None:
            for held, new in zip(_flat(result), _flat(compute()), strict=True):
                held.copy_(new)

        return replay, result


def _flat(result: Any) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else [tensor for part in result for tensor in _flat(part)]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_recordings_answer_as_the_model_does(config: Pi0Config) -> None:
    model, recorder = model_of(config), Replay()
    engine = TorchEngine(model)
    with torch.inference_mode():
        recordings = Recordings(model, model.schedule(), recorder)
        kept = []
        for seed in range(3):
            batch = made_up(config, rows=2, seed=seed)
            if seed == 1:
                batch = promised(batch, rows=(0,))
            answer = recordings.compute(even(batch))
            kept.append((answer, answer.clone()))
            np.testing.assert_allclose(answer.numpy(), engine.infer(batch), atol=1e-5)
        assert recorder.recorded == 2  # a prefix and a flow, of one shape, guided or not
        assert all(torch.equal(answer, copy) for answer, copy in kept)  # a later replay does not write into it
        recordings.compute(even(made_up(config, rows=1)))
        assert (recorder.recorded, len(recordings)) == (4, 2)


def test_recordings_forget_the_shape_used_longest_ago() -> None:
    model, recorder = model_of(TINY), Replay()
    with torch.inference_mode():
        recordings = Recordings(model, model.schedule(), recorder)
        for rows in [*range(1, MOST + 1), 1, MOST + 1]:
            recordings.compute(even(made_up(TINY, rows)))
        assert len(recordings) == MOST
        recorder.recorded = 0
        recordings.compute(even(made_up(TINY, 1)))
        assert recorder.recorded == 0
        recordings.compute(even(made_up(TINY, 2)))
        assert recorder.recorded == 2


def test_shapes_are_few() -> None:
    """Absent cameras are left out, and text is as long as a bucket."""
    for words, used, expected in ((48, 3, 48), (200, 3, 64), (200, 64, 64), (200, 65, 128), (200, 200, 200)):
        batch = made_up(TINY, rows=2, words=words)
        batch.token_mask[:] = np.arange(words)[None] < np.array([[used], [1]])
        images, image_mask, tokens, token_mask, *_ = even(batch)
        assert images.shape[1] == image_mask.shape[1] == 2
        assert tokens.shape[1] == token_mask.shape[1] == expected
        assert int(token_mask.sum()) == used + 1
    batch.image_mask[:] = [[True, False, False], [False, True, False]]
    assert even(batch)[1].tolist() == [[True, False], [False, True]]


def test_it_is_warm_before_a_robot_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shapes of a robot's request were computed when the server says that it is ready."""
    from hotpolicy.runtime.client import PolicyClient
    from hotpolicy.runtime.config import ServeConfig
    from hotpolicy.runtime.server import PolicyServer
    from hotpolicy.runtime.serving.control import Control
    from hotpolicy.runtime.slot import Slot
    from hotpolicy.runtime.store import Store
    from hotpolicy.runtime.versions.loader import load_with

    shapes: list[torch.Size] = []
    whole = Pi0.flow

    def spy(self: Pi0, prefix: Any, state: torch.Tensor, noise: torch.Tensor, *known: Any) -> torch.Tensor:
        shapes.append(noise.shape)
        return whole(self, prefix, state, noise, *known)

    monkeypatch.setattr(Pi0, "flow", spy)
    store = Store(tmp_path / "store")
    store.add(seal_random(tmp_path, TINY).folder)
    slot = Slot(store, load_with("torch", traced=False))
    config = ServeConfig(endpoint=f"ipc://{tmp_path}/data")
    with PolicyServer(config, slot, Control(slot, store)) as server:
        server.wait_ready()
        warm = list(shapes)
        spec = spec_of(TINY, 2)
        images = {camera.name: np.zeros((camera.height, camera.width, 3), np.uint8) for camera in spec.cameras}
        with PolicyClient(server.endpoint) as client:
            client.infer(Observation(images, np.zeros(len(spec.joints), np.float32), "touch the red cube"))
    assert shapes[-1] in warm


def test_policies_of_one_bundle_answer_alike_with_any_number_of_threads(tmp_path: Path) -> None:
    bundle: Bundle = seal_random(tmp_path, TINY_SIGLIP)
    one, two = (load_policy([bundle], device="cpu", threads=threads) for threads in (1, 2))
    spec = spec_of(TINY_SIGLIP, 2)
    rng = np.random.default_rng(3)
    images = {camera.name: rng.integers(0, 256, (28, 28, 3), np.uint8) for camera in spec.cameras}
    seen = [Observation(images, np.zeros(len(spec.joints), np.float32), "touch the red cube")]
    noise = transforms_of(TINY_SIGLIP, 2).noise(rng, 1)
    np.testing.assert_allclose(one.infer(seen, noise), two.infer(seen, noise), atol=1e-3)
