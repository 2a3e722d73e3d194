"""Which kind of checkpoint a path is: openpi's folder, LeRobot's, or a bare file; and what others are, by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hotpolicy.runtime.errors import BundleError

WEIGHTS = "model.safetensors"
OPENPI_TRAINER = ("assets", "metadata.pt")  # beside the weights in a folder that openpi's trainer saved
FAMILIES = ("pi0", "pi05")  # LeRobot's names of what can be imported
MERGE = (
    "merge it into its base model first: peft.PeftModel.from_pretrained(base, adapter).merge_and_unload(), then "
    "save_pretrained, and import that folder"
)
OLD_LEROBOT = (
    "saved by a LeRobot older than 0.4, which kept its normalisers in the model; convert it with its "
    "lerobot/processor/migrate_policy_normalization.py"
)
FOREIGN = {
    "smolvla": "a SmolVLA checkpoint, another architecture; pi0 and pi0.5 can be imported",
    "pi0_fast": "a pi0-FAST checkpoint, which writes actions as tokens; import a pi0 or pi0.5 trained on the same data",
}


@dataclass(frozen=True)
class Source:
    """A checkpoint as it lies on disk."""

    layout: Literal["openpi", "lerobot", "file"]
    folder: Path  # where side files are looked for
    weights: Path
    config: Mapping[str, Any]  # config.json; empty for a bare file


def find_source(path: Path) -> Source:
    """Raises BundleError saying what was found instead of a checkpoint, and what to do."""
    if path.is_file():
        if path.suffix != ".safetensors":
            raise BundleError(f"{path}: expected a .safetensors file or a checkpoint folder")
        if path.name.startswith("adapter_model"):
            raise BundleError(f"{path}: a PEFT adapter, not a whole model; {MERGE}")
        return Source("file", path.parent, path, {})
    if not path.is_dir():
        raise BundleError(f"{path}: no such file or folder")
    if not (path / WEIGHTS).exists() and (path / "pretrained_model").is_dir():
        path = path / "pretrained_model"  # a training step's folder of LeRobot's
    _refuse_others(path)
    if not (path / "config.json").exists():
        return Source("openpi", path, path / WEIGHTS, {})  # as its trainer saves; its converter writes a config.json
    config = read_json(path / "config.json")
    if "type" in config:
        if (kind := config["type"]) not in FAMILIES:
            raise BundleError(
                f"{path}: {FOREIGN.get(str(kind), f'a LeRobot policy of type {kind!r}; expected pi0 or pi05')}"
            )
        return Source("lerobot", path, path / WEIGHTS, config)
    if "action_dim" in config and "action_horizon" in config:
        return Source("openpi", path, path / WEIGHTS, config)
    raise BundleError(
        f"{path}: config.json is neither openpi's (action_dim, action_horizon) nor LeRobot's (type); to import the "
        f"weights alone, name the file {path / WEIGHTS}"
    )


def read_json(path: Path) -> dict[str, Any]:
    """Raises BundleError when it is not a JSON mapping."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: expected JSON ({error})") from error
    if not isinstance(data, dict):
        raise BundleError(f"{path}: expected a JSON mapping")
    return data


def refuse_foreign_keys(path: Path, keys: Mapping[str, object]) -> None:
    """A bare file has no config to say what it is: its keys do. Raises BundleError for another family's."""
    names = [key.removeprefix("model.") for key in keys]
    if any(".lora_A." in name or ".lora_B." in name for name in names):
        raise BundleError(f"{path}: holds a PEFT adapter's LoRA tensors; {MERGE}")
    if any(name.startswith("vlm_with_expert.") for name in names):
        raise BundleError(f"{path}: {FOREIGN['smolvla']}")
    if any(name.startswith(("normalize_inputs.", "unnormalize_outputs.")) for name in names):
        raise BundleError(f"{path}: {OLD_LEROBOT}")
    if not any(name.startswith("paligemma_with_expert.") for name in names):
        first = min(names, default="nothing")
        raise BundleError(f"{path}: no pi0 or pi0.5 weights: expected keys paligemma_with_expert.…, got {first}")
    if not any(name.startswith("action_out_proj.") for name in names) and not any(".gemma_expert." in n for n in names):
        raise BundleError(f"{path}: has no action expert: {FOREIGN['pi0_fast']}")


def _refuse_others(path: Path) -> None:
    if (path / "adapter_config.json").exists():
        raise BundleError(f"{path}: a PEFT adapter, not a whole model; {MERGE}")
    if (path / "params").is_dir() and not (path / WEIGHTS).exists():
        raise BundleError(
            f"{path}: an openpi checkpoint of the JAX trainer; convert it first with openpi's "
            "examples/convert_jax_model_to_pytorch.py"
        )
    if (path / f"{WEIGHTS}.index.json").exists():
        raise BundleError(f"{path}: weights in several files; join them into one {WEIGHTS} first")
    if (path / "manifest.json").exists():
        raise BundleError(f"{path}: a sealed hotpolicy bundle; `hotpolicy add` takes it")
    if not (path / WEIGHTS).exists():
        raise BundleError(f"{path}: not a checkpoint folder of openpi or LeRobot: no {WEIGHTS}")
    if not any((path / name).exists() for name in ("config.json", *OPENPI_TRAINER)):
        raise BundleError(
            f"{path}: not a checkpoint folder of openpi or LeRobot: no config.json; to import the weights alone, name "
            f"the file {path / WEIGHTS}"
        )
