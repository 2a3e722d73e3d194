"""What LeRobot's `pretrained_model/` folder says: config.json and both processor pipelines, read strictly.

A pipeline step that is not known here might change numbers, so it is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hotpolicy.runtime.checkpoint.layout import OLD_LEROBOT, Source, read_json
from hotpolicy.runtime.checkpoint.settings import Stated, Trained
from hotpolicy.runtime.checkpoint.stats import ACTION, STATE, Line, Mode, Numbers, Stats, line, read_lerobot
from hotpolicy.runtime.errors import BundleError

IMAGES = "observation.images."
PRE, POST = "policy_preprocessor.json", "policy_postprocessor.json"
NORMALISER, UNNORMALISER = "normalizer_processor", "unnormalizer_processor"
RELATIVE, TOKENIZER, RENAME = "relative_actions_processor", "tokenizer_processor", "rename_observations_processor"
PROMPTS = {"pi0_new_line_processor": "pi0_lerobot", "pi05_prepare_state_tokenizer_processor_step": "pi05"}
STEPS = {
    PRE: (RENAME, "to_batch_processor", *PROMPTS, TOKENIZER, "device_processor", RELATIVE, NORMALISER),
    POST: (UNNORMALISER, "absolute_actions_processor", "device_processor"),
}
# Mode -> how it is written in a bundle, and its two statistics. None: the numbers are taken as they are.
MODES: Mapping[str, tuple[Mode, tuple[str, str] | None]] = {
    "IDENTITY": ("mean_std", None),
    "MEAN_STD": ("mean_std", None),
    "QUANTILES": ("quantile", None),
    "QUANTILE10": ("quantile", ("q10", "q90")),
    "MIN_MAX": ("quantile", ("min", "max")),
}


@dataclass(frozen=True)
class Normalisers:
    """How this folder normalises, and the files that have its statistics; None when it was saved without."""

    files: tuple[Path, Path] | None  # the preprocessor's and the postprocessor's
    state_mode: str
    action_mode: str

    @property
    def kind(self) -> Mode:
        """As the bundle writes both."""
        kinds = {MODES[name][0] for name in (self.state_mode, self.action_mode)}
        return kinds.pop() if len(kinds) == 1 else "mean_std"

    def stats(self) -> Stats | None:
        if self.files is None:
            return None
        state, action = map(read_lerobot, self.files)
        return Stats(state.state, action.action)

    def line(self, which: str, numbers: Numbers, joints: Sequence[str], floor: float | None) -> Line:
        name = self.state_mode if which == "state" else self.action_mode
        if name == "IDENTITY":
            return Line("mean_std", np.zeros(len(joints)), np.ones(len(joints)))
        mode, fields = MODES[name]
        return line(numbers, mode, joints, floor, fields)


def read_processors(source: Source) -> tuple[Stated, Normalisers]:
    """Raises BundleError naming the file and the field that is missing, unknown, or contradicts another."""
    folder, config = source.folder, source.config
    for name in (PRE, POST):
        if not (folder / name).exists():
            raise BundleError(f"{folder}: no {name}: {OLD_LEROBOT}")
    pre, post = (_steps(folder / name, STEPS[name]) for name in (PRE, POST))
    forward, backward = _step(folder / PRE, pre, NORMALISER), _step(folder / POST, post, UNNORMALISER)
    tokens = _step(folder / PRE, pre, TOKENIZER)["config"]
    state, action = (_entries(config, *where) for where in (("input_features", STATE), ("output_features", ACTION)))
    trained = Trained(
        horizon=_whole(source, "chunk_size"),
        steps=_whole(source, "num_inference_steps"),
        max_tokens=tokens.get("max_length"),
        relative=_relative(pre, action),
    )
    normalisers = _normalisers(folder, forward, backward)
    trained = replace(trained, normalisation=normalisers.kind)
    stated = Stated(
        source=f"{folder / 'config.json'}",
        trained=trained,
        usual=Trained(prompt=next((prompt for name, prompt in PROMPTS.items() if name in pre), None)),
        state_entries=state if state != config.get("max_state_dim") else None,
        action_entries=action if action != config.get("max_action_dim") else None,
        action_names=tuple(config["action_feature_names"]) if config.get("action_feature_names") else None,
        **_slots(config, pre),
    )
    return stated, normalisers


def _steps(path: Path, known: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Step name -> its entry of the pipeline's JSON."""
    steps: dict[str, dict[str, Any]] = {}
    entries = read_json(path).get("steps")
    if not isinstance(entries, list):
        raise BundleError(f"{path}: steps: expected a list")
    for entry in entries:
        name = entry.get("registry_name", entry.get("class")) if isinstance(entry, dict) else entry
        if not isinstance(name, str) or name not in known:
            raise BundleError(f"{path}: steps: {name!r} is not known; expected only {', '.join(known)}")
        steps[name] = {"config": {}, **entry}
    return steps


def _step(path: Path, steps: Mapping[str, dict[str, Any]], name: str) -> dict[str, Any]:
    if name not in steps:
        raise BundleError(f"{path}: steps: expected {name}, got {', '.join(steps)}")
    return steps[name]


def _whole(source: Source, key: str) -> int:
    value = source.config.get(key)
    if type(value) is not int or value < 1:
        raise BundleError(f"{source.folder / 'config.json'}: {key}: expected a whole number above 0, got {value!r}")
    return value


def _entries(config: Mapping[str, Any], features: str, name: str) -> int | None:
    feature = (config.get(features) or {}).get(name)
    return int(feature["shape"][0]) if feature else None


def _slots(config: Mapping[str, Any], pre: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Image slots in the policy's order, the robot's name of each camera, and the sizes it was trained with."""
    renamed = {theirs: ours for ours, theirs in pre.get(RENAME, {}).get("config", {}).get("rename_map", {}).items()}
    slots: dict[str, str | None] = {}
    sizes = {}
    for key, feature in (config.get("input_features") or {}).items():
        if feature.get("type") != "VISUAL":
            continue
        slot = _short(key)
        slots[slot] = None if slot.startswith("empty_camera_") else _short(renamed.get(key, key))
        sizes[slot] = (int(feature["shape"][1]), int(feature["shape"][2]))
    return {"slots": slots, "sizes": sizes} if slots else {}


def _short(key: str) -> str:
    return key.removeprefix(IMAGES).removeprefix("observation.")


def _relative(pre: Mapping[str, dict[str, Any]], entries: int | None) -> tuple[bool, ...] | None:
    """The mask LeRobot builds: every action, except those whose name has an excluded word in it."""
    step = pre.get(RELATIVE, {"config": {}})["config"]
    if entries is None:
        return None
    if not step.get("enabled", False):
        return (False,) * entries
    words = [str(word).lower() for word in step.get("exclude_joints") or () if word]
    names = [str(name).lower() for name in step.get("action_names") or ()]
    named = [not any(word in name for word in words) for name in names[:entries]]
    return (*named, *(True,) * (entries - len(named)))


def _normalisers(folder: Path, forward: dict[str, Any], backward: dict[str, Any]) -> Normalisers:
    modes = {
        which: str(step["config"].get("norm_map", {}).get(which, "IDENTITY"))
        for which, step in (("STATE", forward), ("ACTION", backward))
    }
    for which, mode in modes.items():
        if mode not in MODES:
            raise BundleError(f"{folder / PRE}: norm_map.{which}: expected one of {', '.join(MODES)}, got {mode}")
    trained = str(forward["config"].get("norm_map", {}).get("ACTION", "IDENTITY"))
    if trained != modes["ACTION"]:
        raise BundleError(f"{folder / POST}: norm_map.ACTION: {modes['ACTION']}, but the preprocessor has {trained}")
    files = [step.get("state_file") for step in (forward, backward)]
    if None in files:
        return Normalisers(None, modes["STATE"], modes["ACTION"])
    before, after = (_inside(folder, str(name)) for name in files)
    return Normalisers((before, after), modes["STATE"], modes["ACTION"])


def _inside(folder: Path, name: str) -> Path:
    if "/" in name or name.startswith("."):
        raise BundleError(f"{folder}: state_file: expected a plain file name, got {name!r}")
    if not (folder / name).exists():
        raise BundleError(f"{folder}: {name}: missing, the processor's statistics")
    return folder / name
