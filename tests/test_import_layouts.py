"""Every layout people have becomes the same policy: same weights, the normalisers and prompts it was trained with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import (
    CAMERA,
    HORIZON,
    JOINTS,
    SLOTS,
    WIDTH,
    blank,
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
from hotpolicy.runtime.checkpoint.importer import Extras, Imported, import_checkpoint, read_checkpoint
from hotpolicy.runtime.checkpoint.sizes import Heads
from hotpolicy.runtime.policy import load_policy

FAMILIES = ("pi0", "pi05")


def bring(path: Path, tmp_path: Path, more: str = SLOTS, flags: Flags | None = None, **extras: Any) -> Imported:
    settings = load_settings(None, write_settings(tmp_path / "robot.yaml", more), flags or Flags())
    return import_checkpoint(read_checkpoint(path), tmp_path / "out", settings, Extras(**extras))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def same_weights(bundle: Bundle, ours: dict[str, np.ndarray]) -> None:
    tensors = bundle.tensors()
    assert set(tensors) == set(ours)
    for name, array in ours.items():
        np.testing.assert_array_equal(tensors[name], array, err_msg=name)


def test_openpi_folder_with_the_embedding_under_the_head_s_name(family: str, tmp_path: Path) -> None:
    bundle = bring(write_openpi(tmp_path / "checkpoint", family), tmp_path).bundle
    same_weights(bundle, weights(family))
    transforms = bundle.manifest.transforms
    mode, fields = ("quantile", ("q01", "q99")) if family == "pi05" else ("mean_std", ("mean", "std"))
    assert transforms["normalisation"] == mode
    made = stats(pad_to=WIDTH)
    for which, key in (("state", "state"), ("action", "actions")):
        assert transforms[which] == {field: made[key][field][:JOINTS] for field in fields}
    assert transforms["eps"] == 1e-6
    assert (transforms["prompt"], transforms["tokenizer"]["max_tokens"]) == (family, 200 if family == "pi05" else 48)
    assert (transforms["width"], transforms["horizon"]) == (WIDTH, HORIZON)
    assert transforms["images"] == {"size": 28, "resize": "pad", "slots": ["front", "wrist", None]}
    assert transforms["relative"] == [False] * JOINTS
    assert [camera.name for camera in bundle.manifest.spec.cameras] == ["front", "wrist"]


def test_lerobot_folder_says_most_things_itself(family: str, tmp_path: Path) -> None:
    bundle = bring(write_lerobot(tmp_path / "checkpoint", family), tmp_path, more="").bundle
    same_weights(bundle, weights(family))
    transforms, made = bundle.manifest.transforms, stats()
    field = "q01" if family == "pi05" else "mean"
    np.testing.assert_allclose(transforms["action"][field], made["actions"][field], rtol=1e-6)
    np.testing.assert_allclose(transforms["state"][field], made["state"][field], rtol=1e-6)
    assert "eps" not in transforms
    assert transforms["prompt"] == ("pi05" if family == "pi05" else "pi0_lerobot")
    assert transforms["tokenizer"]["max_tokens"] == 60
    assert transforms["images"]["slots"] == ["front", "wrist", None]
    assert transforms["relative"] == [True] * 5 + [False]


def test_a_training_step_s_folder_is_looked_into(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "checkpoints" / "000100" / "pretrained_model", "pi0")
    inner = bring(tmp_path / "checkpoints" / "000100" / "pretrained_model", tmp_path, more="").bundle
    assert bring(tmp_path / "checkpoints" / "000100", tmp_path, more="").bundle.id == inner.id


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_bare_file_needs_all_the_rest_by_hand(family: str, prefix: str, tmp_path: Path) -> None:
    file = tmp_path / "some_weights.safetensors"
    save_file(published_tensors(family, weights(family), prefix), file)
    (tmp_path / "stats.json").write_text(json.dumps({"norm_stats": stats()}))
    tokenizer = write_tokenizer(tmp_path / "elsewhere.model")
    given = {"stats": tmp_path / "stats.json", "tokenizer": tokenizer}
    bundle = bring(file, tmp_path, flags=Flags(horizon=7, relative="pan.pos,lift.pos"), **given).bundle
    same_weights(bundle, weights(family))
    assert bundle.manifest.transforms["horizon"] == 7
    assert bundle.manifest.transforms["relative"] == [True, True, False, False, False, False]


def test_what_openpi_s_trainer_saves_has_no_config(family: str, tmp_path: Path) -> None:
    path = write_openpi(tmp_path / "30000", family)
    (path / "config.json").unlink()
    bundle = bring(path, tmp_path, flags=Flags(horizon=HORIZON)).bundle
    same_weights(bundle, weights(family))
    assert bundle.manifest.transforms["horizon"] == HORIZON


def test_a_base_model_s_padded_width_is_no_robot_s(tmp_path: Path) -> None:
    """LeRobot's pi0_base says 32 entries and has no statistics: it is brought to be tuned on another robot."""
    path = write_lerobot(tmp_path / "checkpoint", "pi0")
    config = json.loads((path / "config.json").read_text())
    config["input_features"]["observation.state"]["shape"] = [WIDTH]
    config["output_features"]["action"]["shape"] = [WIDTH]
    (path / "config.json").write_text(json.dumps(config))
    for name in ("policy_preprocessor", "policy_postprocessor"):
        data = json.loads((path / f"{name}.json").read_text())
        for step in data["steps"]:
            step.pop("state_file", None)
        (path / f"{name}.json").write_text(json.dumps(data))
    made = {"observation.state": stats()["state"], "action": stats()["actions"], "episode_index": {"min": [0]}}
    (tmp_path / "stats.json").write_text(json.dumps(made))
    transforms = bring(path, tmp_path, more="", stats=tmp_path / "stats.json").bundle.manifest.transforms
    assert transforms["state"]["mean"] == stats()["state"]["mean"]
    assert transforms["relative"] == [True] * 5 + [False]
    assert "eps" not in transforms


def test_the_same_import_gives_the_same_version(tmp_path: Path) -> None:
    path = write_openpi(tmp_path / "checkpoint", "pi0")
    assert bring(path, tmp_path).bundle.id == bring(path, tmp_path).bundle.id
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == [bring(path, tmp_path).bundle.id]


def test_the_family_comes_from_the_keys_not_from_the_path(tmp_path: Path) -> None:
    bundle = bring(write_openpi(tmp_path / "pi05_droid", "pi0"), tmp_path).bundle
    assert bundle.manifest.model["config"]["pi05"] is False
    assert bundle.manifest.provenance["family"] == "pi0"


def test_an_imported_policy_acts(family: str, tmp_path: Path) -> None:
    for write, more in ((write_openpi, SLOTS), (write_lerobot, "")):
        imported = bring(write(tmp_path / write.__name__, family), tmp_path, more, try_it=True)
        assert imported.certified == "digests, loaded, one chunk of finite actions"
        policy = load_policy([imported.bundle])
        actions = policy.infer([blank(policy.spec)])
        assert actions.shape == (1, HORIZON, JOINTS)
        assert np.isfinite(actions).all()


def test_statistics_given_replace_those_found(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"norm_stats": stats(seed=9)}))
    bundle = bring(write_lerobot(tmp_path / "checkpoint", "pi0"), tmp_path, more="", stats=other).bundle
    assert bundle.manifest.transforms["state"]["mean"] == stats(seed=9)["state"]["mean"]
    assert bundle.manifest.transforms["eps"] == 1e-6


@pytest.mark.parametrize(("mode", "ends"), [("MIN_MAX", ("min", "max")), ("QUANTILE10", ("q10", "q90"))])
def test_lerobot_s_other_modes_are_quantiles_by_other_names(mode: str, ends: tuple[str, str], tmp_path: Path) -> None:
    path = write_lerobot(tmp_path / "checkpoint", "pi05")
    edit_modes(path, {"STATE": mode, "ACTION": "QUANTILES"})
    for file in path.glob("*normalizer_processor.safetensors"):
        numbers = {f"observation.state.{ends[0]}": np.full(6, -3.0), f"observation.state.{ends[1]}": np.full(6, 5.0)}
        made = {f"action.{name}": np.array(stats()["actions"][name]) for name in ("q01", "q99")}
        save_file({**numbers, **made}, file)
    transforms = bring(path, tmp_path, more="").bundle.manifest.transforms
    assert transforms["normalisation"] == "quantile"
    assert transforms["state"] == {"q01": [-3.0] * 6, "q99": [5.0] * 6}


def test_two_modes_become_one(tmp_path: Path) -> None:
    path = write_lerobot(tmp_path / "checkpoint", "pi05")
    edit_modes(path, {"STATE": "QUANTILES", "ACTION": "MEAN_STD"})
    bundle = bring(path, tmp_path, more="").bundle
    policy, made = load_policy([bundle]), stats()
    state = np.array(made["state"]["q99"], np.float32)[None]
    np.testing.assert_allclose(policy.transforms.encode_state(state)[0, :JOINTS], 1, rtol=1e-5)
    assert bundle.manifest.transforms["normalisation"] == "mean_std"
    np.testing.assert_allclose(bundle.manifest.transforms["action"]["std"], made["actions"]["std"], rtol=1e-6)


def test_a_renamed_camera_is_asked_for_by_the_robot_s_name(tmp_path: Path) -> None:
    path = write_lerobot(tmp_path / "checkpoint", "pi0")
    rename = {"observation.images.overhead": "observation.images.front"}
    pre = json.loads((path / "policy_preprocessor.json").read_text())
    pre["steps"][0]["config"]["rename_map"] = rename
    (path / "policy_preprocessor.json").write_text(json.dumps(pre))
    bundle = bring(path, tmp_path, more="").bundle
    assert [(c.name, c.height) for c in bundle.manifest.spec.cameras] == [("overhead", CAMERA), ("wrist", 28)]
    other = bring(path, tmp_path, more="slots: {wrist: none}\n").bundle
    assert other.manifest.transforms["images"]["slots"] == ["overhead", None, None]


def test_a_preset_s_cameras_come_after_the_checkpoint_s_and_a_user_s_before(tmp_path: Path) -> None:
    path = write_lerobot(tmp_path / "checkpoint", "pi0")
    config = json.loads((path / "config.json").read_text())
    config["action_feature_names"] = [joint.name for joint in load_settings("so101", None, Flags()).joints]
    (path / "config.json").write_text(json.dumps(config))
    for given, sizes in (((), [CAMERA, CAMERA]), (("wrist=30x50",), [CAMERA, 30])):
        settings = replace(load_settings("so101", None, Flags(cameras=given)), heads=Heads(8, 2))
        imported = import_checkpoint(read_checkpoint(path), tmp_path / "out", settings, Extras())
        assert [camera.height for camera in imported.bundle.manifest.spec.cameras] == sizes
        assert imported.bundle.manifest.transforms["images"]["slots"] == ["front", "wrist", None]


def test_a_floor_is_applied_and_said(tmp_path: Path) -> None:
    path = write_openpi(tmp_path / "checkpoint", "pi0", assets=False)
    still = stats()
    still["state"]["std"][4] = 0.0
    (tmp_path / "stats.json").write_text(json.dumps({"norm_stats": still}))
    imported = bring(path, tmp_path, stats=tmp_path / "stats.json", floor=0.5)
    assert imported.remarks == ["state: spread raised to the floor, 0.5: roll.pos"]
    assert imported.bundle.manifest.transforms["state"]["std"][4] == 0.5


def edit_modes(path: Path, modes: dict[str, str]) -> None:
    for name in ("policy_preprocessor", "policy_postprocessor"):
        data = json.loads((path / f"{name}.json").read_text())
        for step in data["steps"]:
            if "norm_map" in step["config"]:
                step["config"]["norm_map"] = {"VISUAL": "IDENTITY", **modes}
        (path / f"{name}.json").write_text(json.dumps(data))
