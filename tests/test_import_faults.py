"""Each fault of a checkpoint is refused by name, and leaves nothing behind."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import (
    SLOTS,
    published_tensors,
    stats,
    weights,
    write_lerobot,
    write_openpi,
    write_settings,
    write_tokenizer,
)
from safetensors.numpy import save_file

from hotpolicy.launch.import_settings import Flags, load_settings
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.checkpoint.importer import Extras, import_checkpoint, read_checkpoint
from hotpolicy.runtime.errors import BundleError, ConfigError
from hotpolicy.runtime.model.weights import EMBEDDING, TIED_HEAD
from hotpolicy.runtime.versions.tensor_file import TensorFile

LAYER = "paligemma_with_expert.gemma_expert.model.layers.1.self_attn.q_proj.weight"


def bring(path: Path, tmp_path: Path, more: str = SLOTS, flags: Flags | None = None, **extras: Any) -> Bundle:
    settings = load_settings(None, write_settings(tmp_path / "robot.yaml", more), flags or Flags())
    return import_checkpoint(read_checkpoint(path), tmp_path / "out", settings, Extras(**extras)).bundle


def refused(path: Path, tmp_path: Path, *words: str, **how: Any) -> str:
    """The error's text, which has all of `words`."""
    with pytest.raises((BundleError, ConfigError)) as caught:
        bring(path, tmp_path, **how)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    return text


def with_tensors(tmp_path: Path, change: Callable[[dict[str, np.ndarray]], Any], family: str = "pi0") -> Path:
    path = write_openpi(tmp_path / "checkpoint", family)
    tensors = published_tensors(family, weights(family))
    del tensors[EMBEDDING]
    change(tensors)
    save_file(tensors, path / "model.safetensors")
    return path


def edit(file: Path, **more: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **more}))


# ── the file ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_a_truncated_file(keep: float, tmp_path: Path) -> None:
    path = write_openpi(tmp_path / "checkpoint", "pi0")
    content = (path / "model.safetensors").read_bytes()
    end = int(len(content) * keep) if isinstance(keep, float) else keep
    (path / "model.safetensors").write_bytes(content[:end])
    text = refused(path, tmp_path, "model.safetensors")
    assert ("truncated in tensor " in text) is (keep in (0.5, -1))


def test_a_file_with_more_than_its_header_says(tmp_path: Path) -> None:
    path = write_openpi(tmp_path / "checkpoint", "pi0")
    with (path / "model.safetensors").open("ab") as file:
        file.write(b"more")
    refused(path, tmp_path, "4 bytes more")


def test_every_flipped_bit_of_a_header_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    save_file({"a": np.arange(6, dtype=np.float32), "b": np.arange(4, dtype=np.float32)}, file)
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    whole = {name: entry for name, entry in TensorFile(file).entries.items()}
    refusals = 0
    for bit in range(8 * (8 + length)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        try:
            found = TensorFile(file).entries
        except BundleError:
            refusals += 1
            continue
        sizes = {name: (entry.start, entry.end) for name, entry in whole.items()}
        assert sorted((entry.start, entry.end) for entry in found.values()) == sorted(sizes.values())
    assert refusals > 4 * (8 + length)


def test_a_bit_flipped_after_sealing_is_found_by_its_digest(tmp_path: Path) -> None:
    bundle = bring(write_openpi(tmp_path / "checkpoint", "pi0"), tmp_path)
    file = bundle.folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"tensor \S+: digest mismatch"):
        bundle.verify()


# ── tensors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_missing_tensor(tmp_path: Path) -> None:
    path = with_tensors(tmp_path, lambda tensors: tensors.pop(LAYER))
    refused(path, tmp_path, "not a whole pi0 checkpoint", "1 missing", LAYER)


def test_no_embedding_under_either_name(tmp_path: Path) -> None:
    path = with_tensors(tmp_path, lambda tensors: tensors.pop(TIED_HEAD))
    refused(path, tmp_path, "1 missing", EMBEDDING)


def test_an_unknown_tensor(tmp_path: Path) -> None:
    path = with_tensors(tmp_path, lambda tensors: tensors.update({"novel.weight": np.zeros(3, np.float32)}))
    refused(path, tmp_path, "1 unknown", "novel.weight")


def test_pi0_with_a_piece_of_pi05(tmp_path: Path) -> None:
    path = with_tensors(tmp_path, lambda tensors: tensors.update({"time_mlp_in.weight": np.zeros((24, 24))}))
    refused(path, tmp_path, "not a whole pi0 checkpoint", "1 unknown", "time_mlp_in.weight")


@pytest.mark.parametrize(
    "name",
    [
        LAYER,
        TIED_HEAD,
        "action_out_proj.weight",
        "paligemma_with_expert.paligemma.model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
        "paligemma_with_expert.paligemma.model.language_model.layers.0.input_layernorm.weight",
        "paligemma_with_expert.paligemma.model.multi_modal_projector.linear.bias",
    ],
)
def test_a_wrong_shape(name: str, tmp_path: Path) -> None:
    shapes = {}

    def widen(tensors: dict[str, np.ndarray]) -> None:
        right = tensors[name].shape
        shapes.update(right=right, wrong=(*right[:-1], right[-1] + 8))
        tensors[name] = np.zeros(shapes["wrong"], np.float32)

    path = with_tensors(tmp_path, widen)
    refused(path, tmp_path, f"tensor {name}: expected shape {shapes['right']}, got {shapes['wrong']}")


@pytest.mark.parametrize(("dtype", "said"), [(np.float16, "F16"), (np.float64, "F64"), (np.int8, "I8")])
def test_a_wrong_dtype(dtype: Any, said: str, tmp_path: Path) -> None:
    path = with_tensors(tmp_path, lambda tensors: tensors.update({LAYER: tensors[LAYER].astype(dtype)}))
    refused(path, tmp_path, f"tensor {LAYER}: expected dtype F32 or BF16, got {said}")


def test_a_weight_that_is_not_a_number(tmp_path: Path) -> None:
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors[LAYER][0, 0] = np.nan

    refused(with_tensors(tmp_path, spoil), tmp_path, "expert.1.self_attn.q_proj.weight", "NaN")


# ── statistics ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_converted_folder_without_assets(tmp_path: Path) -> None:
    refused(
        write_openpi(tmp_path / "checkpoint", "pi0", assets=False),
        tmp_path,
        "assets/<robot>/norm_stats.json",
        "--stats",
    )


def test_assets_of_several_robots(tmp_path: Path) -> None:
    path = write_openpi(tmp_path / "checkpoint", "pi0")
    other = path / "assets" / "droid"
    other.mkdir()
    (other / "norm_stats.json").write_text(json.dumps({"norm_stats": stats(seed=4)}))
    refused(path, tmp_path, "droid, someone/robot", "--asset")
    chosen = bring(path, tmp_path, asset="droid").manifest.transforms
    assert chosen["state"]["mean"] == stats(seed=4)["state"]["mean"]


@pytest.mark.parametrize(
    ("family", "which", "field", "value", "words"),
    [
        ("pi0", "state", "mean", float("nan"), ("norm_stats.state.mean: entry 2 is not a finite number",)),
        ("pi0", "actions", "std", float("inf"), ("norm_stats.actions.std: entry 2 is not a finite number",)),
        ("pi0", "state", "std", 0.0, ("std of elbow.pos is 0", "--floor")),
        ("pi0", "actions", "std", -1.0, ("std of elbow.pos is -1", "--floor")),
        ("pi05", "state", "q99", -1e9, ("range q01 to q99 of elbow.pos", "--floor")),
        ("pi05", "actions", "q01", float("nan"), ("norm_stats.actions.q01: entry 2 is not a finite number",)),
    ],
)
def test_statistics_that_cannot_normalise(
    family: str, which: str, field: str, value: float, words: tuple[str, ...], tmp_path: Path
) -> None:
    made = stats()
    made[which][field][2] = value
    (tmp_path / "stats.json").write_text(json.dumps({"norm_stats": made}))
    path = write_openpi(tmp_path / "checkpoint", family)
    refused(path, tmp_path, *words, stats=tmp_path / "stats.json")


def test_statistics_of_fewer_joints_and_without_quantiles(tmp_path: Path) -> None:
    short, bare = stats(), stats()
    short["actions"]["mean"].pop()
    bare["state"]["q01"] = None  # type: ignore[assignment]  # as openpi writes what it did not compute
    for name, made in (("short", short), ("bare", bare)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"norm_stats": made}))
    pi0, pi05 = (write_openpi(tmp_path / family, family) for family in ("pi0", "pi05"))
    refused(pi0, tmp_path, "actions.mean: expected at least 6 entries", stats=tmp_path / "short.json")
    refused(pi05, tmp_path, "norm_stats.state.q01: missing; there are: mean, q99, std", stats=tmp_path / "bare.json")


def test_lerobot_statistics_with_nan(tmp_path: Path) -> None:
    path = write_lerobot(tmp_path / "checkpoint", "pi0")
    numbers = {
        f"{f}.{n}": np.full(6, np.nan, np.float32) for f in ("action", "observation.state") for n in ("mean", "std")
    }
    save_file(numbers, path / "policy_preprocessor_step_5_normalizer_processor.safetensors")
    refused(path, tmp_path, "observation.state.mean: entry 0 is not a finite number", more="")


def test_lerobot_processors_saved_without_statistics(tmp_path: Path) -> None:
    path = write_lerobot(tmp_path / "checkpoint", "pi0")
    pre = json.loads((path / "policy_preprocessor.json").read_text())
    del pre["steps"][-1]["state_file"]
    (path / "policy_preprocessor.json").write_text(json.dumps(pre))
    refused(path, tmp_path, "saved without statistics", "--stats", more="")


# ── tokenizer ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_tokenizer(tmp_path: Path) -> None:
    path = write_openpi(tmp_path / "checkpoint", "pi0")
    (path / "paligemma_tokenizer.model").unlink()
    refused(path, tmp_path, "--tokenizer", "google/paligemma-3b-pt-224", "gs://big_vision/paligemma_tokenizer.model")
    bring(path, tmp_path, tokenizer=write_tokenizer(tmp_path / "mine.model"))


def test_a_tokenizer_that_is_none_or_another_model_s(tmp_path: Path) -> None:
    path = write_openpi(tmp_path / "checkpoint", "pi0")
    (tmp_path / "junk.model").write_bytes(b"junk")
    refused(path, tmp_path, "not a sentencepiece model", tokenizer=tmp_path / "junk.model")

    def shrink(tensors: dict[str, np.ndarray]) -> None:
        tensors[TIED_HEAD] = tensors[TIED_HEAD][:60]

    small = with_tensors(tmp_path / "small", shrink)
    refused(small, tmp_path, "the model 60", "not this model's")


# ── what the folder says ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("action_dim", 32, ("action_dim: 32", "the weights are 8")),
        ("paligemma_variant", "gemma_2b", ("paligemma_variant: 'gemma_2b'", "width 32, 2 layers")),
        ("action_expert_variant", "gemma_300m", ("action_expert_variant", "width 24")),
        ("pi05", True, ("pi05: True, but the weights are False",)),
        ("action_horizon", 0, ("action_horizon: expected above 0",)),
    ],
)
def test_an_openpi_config_that_contradicts_the_weights(
    field: str, value: object, words: tuple[str, ...], tmp_path: Path
) -> None:
    path = write_openpi(tmp_path / "checkpoint", "pi0")
    edit(path / "config.json", **{field: value})
    refused(path, tmp_path, "config.json", *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"type": "pi05"}, ("type: 'pi05', but the weights are 'pi0'",)),
        ({"max_state_dim": 32}, ("max_state_dim: 32, but the weights are 8",)),
        ({"image_resolution": [224, 224]}, ("image_resolution: [224, 224], but the weights are [28, 28]",)),
        ({"chunk_size": "five"}, ("chunk_size: expected a whole number",)),
        ({"output_features": {"action": {"type": "ACTION", "shape": [7]}}}, ("the action has 7 entries", "6")),
        ({"action_feature_names": ["a", "b", "c", "d", "e", "f"]}, ("calls action 0 'a', the settings 'pan.pos'",)),
    ],
)
def test_a_lerobot_config_that_contradicts(change: dict[str, Any], words: tuple[str, ...], tmp_path: Path) -> None:
    path = write_lerobot(tmp_path / "checkpoint", "pi0")
    edit(path / "config.json", **change)
    refused(path, tmp_path, "config.json", *words, more="")


def test_a_flag_that_contradicts_the_checkpoint(tmp_path: Path) -> None:
    path = write_lerobot(tmp_path / "checkpoint", "pi0")
    refused(path, tmp_path, "horizon: 9 was asked for, but", "says 5", more="", flags=Flags(horizon=9))
    refused(path, tmp_path, "max_tokens: 48 was asked for, but", "says 60", more="max_tokens: 48\n")
    refused(path, tmp_path, "relative: ", "says relative relative", more="", flags=Flags(relative="none"))
    refused(path, tmp_path, "normalisation: quantile was asked for", more="", flags=Flags(normalisation="quantile"))
    refused(
        path, tmp_path, "slots.base: ", "no such slot; it has front, wrist", more="", flags=Flags(slots=("base=front",))
    )


def test_a_processor_step_that_is_not_known(tmp_path: Path) -> None:
    path = write_lerobot(tmp_path / "checkpoint", "pi0")
    pre = json.loads((path / "policy_preprocessor.json").read_text())
    pre["steps"].insert(2, {"registry_name": "wrist_flip_processor", "config": {}})
    (path / "policy_preprocessor.json").write_text(json.dumps(pre))
    refused(path, tmp_path, "policy_preprocessor.json", "'wrist_flip_processor' is not known", more="")


def test_a_lerobot_folder_from_before_processors(tmp_path: Path) -> None:
    path = write_lerobot(tmp_path / "checkpoint", "pi0")
    (path / "policy_preprocessor.json").unlink()
    refused(path, tmp_path, "older than 0.4", "migrate_policy_normalization", more="")


def test_a_bare_file_without_a_horizon(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(published_tensors("pi0", weights("pi0")), file)
    refused(file, tmp_path, "horizon", "--horizon")
    refused(file, tmp_path, "a bare file has no statistics", "--stats", flags=Flags(horizon=5))


def test_heads_that_nothing_tells(tmp_path: Path) -> None:
    path = write_openpi(tmp_path / "checkpoint", "pi0")
    settings = write_settings(tmp_path / "robot.yaml")
    settings.write_text(settings.read_text().replace("head_dim: 8\n", ""))
    with pytest.raises(BundleError, match="give head_dim in the settings"):
        import_checkpoint(read_checkpoint(path), tmp_path / "out", load_settings(None, settings, Flags()), Extras())


# ── what is no checkpoint of these ────────────────────────────────────────────────────────────────────────────────────


def folder_with(**files: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        for name, text in files.items():
            (path / name.replace("__", ".")).write_text(text)

    return make


def bare(*names: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        save_file({name: np.zeros(2, np.float32) for name in names}, path / "model.safetensors")
        (path / "config.json").write_text('{"action_dim": 32, "action_horizon": 50}')

    return make


def jax(path: Path) -> None:
    (path / "params").mkdir(parents=True)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (folder_with(adapter_config__json="{}", adapter_model__safetensors=""), ("PEFT adapter", "merge_and_unload")),
        (folder_with(config__json='{"type": "smolvla"}', model__safetensors=""), ("SmolVLA", "pi0 and pi0.5")),
        (folder_with(config__json='{"type": "pi0_fast"}', model__safetensors=""), ("pi0-FAST", "tokens")),
        (folder_with(config__json='{"type": "act"}', model__safetensors=""), ("type 'act'", "expected pi0 or pi05")),
        (folder_with(config__json='{"hidden_size": 3}', model__safetensors=""), ("neither openpi's", "nor LeRobot's")),
        (folder_with(config__json="[", model__safetensors=""), ("config.json: expected JSON",)),
        (folder_with(model__safetensors=""), ("no config.json", "name the file")),
        (bare("model.normalize_inputs.buffer_observation_state.mean"), ("older than 0.4", "migrate_policy")),
        (folder_with(readme__md=""), ("not a checkpoint folder", "no model.safetensors")),
        (folder_with(manifest__json="{}"), ("sealed hotpolicy bundle", "hotpolicy add")),
        (folder_with(model__safetensors__index__json="{}"), ("weights in several files",)),
        (jax, ("JAX", "convert_jax_model_to_pytorch.py")),
        (bare("model.vlm_with_expert.vlm.lm_head.weight"), ("SmolVLA",)),
        (bare("base_model.model.x.lora_A.weight"), ("LoRA", "merge_and_unload")),
        (bare("transformer.h.0.weight"), ("no pi0 or pi0.5 weights", "transformer.h.0.weight")),
        (bare("paligemma_with_expert.paligemma.lm_head.weight"), ("pi0-FAST",)),
    ],
)
def test_what_is_something_else(make: Callable[[Path], None], words: tuple[str, ...], tmp_path: Path) -> None:
    make(tmp_path / "thing")
    refused(tmp_path / "thing", tmp_path, *words)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    path, settings = write_openpi(tmp_path / "checkpoint", "pi0"), write_settings(tmp_path / "robot.yaml")
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match=r"file: cannot be written: .*file: File exists"):
        import_checkpoint(read_checkpoint(path), tmp_path / "file", load_settings(None, settings, Flags()), Extras())


def test_no_such_path_and_a_file_of_another_kind(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", tmp_path, "no such file or folder")
    (tmp_path / "model.pt").write_bytes(b"")
    refused(tmp_path / "model.pt", tmp_path, "expected a .safetensors file")
