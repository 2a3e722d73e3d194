"""A checkpoint becomes a sealed bundle: find, account for every tensor, resolve what is said, seal, certify."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hotpolicy.runtime import durable
from hotpolicy.runtime.bundle import Bundle, seal
from hotpolicy.runtime.checkpoint import lerobot, openpi
from hotpolicy.runtime.checkpoint.certify import certify
from hotpolicy.runtime.checkpoint.contradiction import FAMILY, check_config
from hotpolicy.runtime.checkpoint.coverage import Row, account, check_complete, check_tensors
from hotpolicy.runtime.checkpoint.layout import Source, find_source, refuse_foreign_keys
from hotpolicy.runtime.checkpoint.settings import Resolved, Settings, Stated, resolve
from hotpolicy.runtime.checkpoint.sizes import infer_config
from hotpolicy.runtime.checkpoint.stats import Line, Stats, line, read_stats
from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.messages import RobotSpec
from hotpolicy.runtime.model.pi0 import Pi0Config
from hotpolicy.runtime.model.weights import Plan, published_to_ours
from hotpolicy.runtime.tokenizer import WHERE
from hotpolicy.runtime.transforms import Transforms
from hotpolicy.runtime.versions.tensor_file import Renamed, TensorFile

TOKENIZER = "tokenizer.model"
TOKENIZER_FILES = (TOKENIZER, "paligemma_tokenizer.model")
UNUSED_SPREAD = 1e-3  # of a joint without an action, in its unit: it stays where it is measured


@dataclass(frozen=True, slots=True)
class Extras:
    """Files and choices that go with one import."""

    stats: Path | None = None  # instead of the checkpoint's own
    asset: str | None = None  # which of openpi's assets
    tokenizer: Path | None = None  # PaliGemma's sentencepiece model
    floor: float | None = None  # smallest spread of a joint allowed, in its unit; None: a spread of nothing is refused
    try_it: bool = False  # compute one chunk on blank pictures


@dataclass(frozen=True)
class Checkpoint:
    """Read and accounted for: whole, of one family, of the shapes its model has."""

    source: Source
    tensors: TensorFile
    plan: Plan
    rows: list[Row]


@dataclass(frozen=True)
class Imported:
    bundle: Bundle
    certified: str  # what was checked of it
    remarks: list[str]  # what was done that a person should know


def read_checkpoint(path: Path) -> Checkpoint:
    """Raises BundleError for what is no whole pi0 or pi0.5 checkpoint, naming what is missing or unknown."""
    source = find_source(path)
    tensors = TensorFile(source.weights)
    refuse_foreign_keys(source.weights, tensors.entries)
    plan = published_to_ours(tensors)
    return Checkpoint(source, tensors, plan, account(tensors.entries, plan))


def import_checkpoint(checkpoint: Checkpoint, folder: Path, settings: Settings, extras: Extras) -> Imported:
    """Seal a policy bundle into `folder/<id>`. Raises BundleError or ConfigError naming what is wrong or not said;
    nothing is left in `folder` then."""
    source, plan = checkpoint.source, checkpoint.plan
    check_complete(source.weights, plan)
    stated, normalisers = _stated(source)
    robot = resolve(settings, stated, plan.pi05)
    config = _config(checkpoint, robot, settings)
    if len(robot.joints) > config.action_dim:
        raise BundleError(f"joints: the model has room for {config.action_dim}, the settings have {len(robot.joints)}")
    remarks: list[str] = [settings.note] if settings.note else []
    entry = _transforms(source, robot, config, normalisers, extras, remarks)
    tokenizer = find_tokenizer(source, extras)
    spec = RobotSpec(robot.joints, robot.cameras, robot.rate_hz)
    transforms = Transforms.from_dict(entry, _At({TOKENIZER: tokenizer}))
    transforms.check_fits(spec, config.to_dict())  # refused here rather than after writing gigabytes
    content = {
        "model": {"family": "pi0", "config": config.to_dict()},
        "tensors": Renamed(checkpoint.tensors, plan.names),
        "spec": spec,
        "transforms": entry,
        "provenance": {
            "made_by": "import", "layout": source.layout, "file": source.weights.name, "family": FAMILY[plan.pi05],
            "settings": settings.origin, "coverage": checkpoint.rows[-1].to_dict(),
        },
        "files": {TOKENIZER: tokenizer},
    }  # fmt: skip
    try:
        bundle, certified = _seal(folder, content, extras.try_it)
    except OSError as error:
        raise BundleError(f"{folder}: cannot be written: {durable.refusal(error)}") from error
    return Imported(bundle, certified, remarks)


def _seal(folder: Path, content: Mapping[str, Any], try_it: bool) -> tuple[Bundle, str]:
    """A bundle gets its place only when it is certified."""
    durable.require_room(folder, sum(tensor.nbytes for tensor in content["tensors"].values()))
    folder.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".import-", dir=folder))
    try:
        bundle = seal(fresh, kind="full", parent=None, **content)
        certified = certify(bundle, try_it)
        durable.settle_folder(bundle.folder, folder / bundle.id)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return Bundle.open(folder / bundle.id, expect=bundle.id), certified


def find_tokenizer(source: Source, extras: Extras) -> Path:
    """Raises BundleError when there is none, saying where users get it."""
    places = [extras.tokenizer] if extras.tokenizer else [source.folder / name for name in TOKENIZER_FILES]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise BundleError(f"{places[0]}: no tokenizer; give --tokenizer FILE. {WHERE}")
    return found


def _stated(source: Source) -> tuple[Stated, lerobot.Normalisers | None]:
    if source.layout == "lerobot":
        return lerobot.read_processors(source)
    return (openpi.read_config(source) if source.layout == "openpi" else Stated(str(source.weights))), None


def _config(checkpoint: Checkpoint, robot: Resolved, settings: Settings) -> Pi0Config:
    plan, entries = checkpoint.plan, checkpoint.tensors.entries
    shapes = {ours: entries[key].shape for key, ours in plan.names.items()}
    config = infer_config(shapes, plan.depths, plan.pi05, robot.horizon, robot.steps, settings.heads)
    check_config(checkpoint.source, config)
    check_tensors(checkpoint.source.weights, entries, plan, config)
    return config


def _transforms(
    source: Source, robot: Resolved, config: Pi0Config, normalisers: lerobot.Normalisers | None, extras: Extras,
    remarks: list[str],
) -> dict[str, Any]:  # fmt: skip
    """The manifest's entry."""
    stats = _stats(source, normalisers, extras)
    lines: dict[str, Line] = {}
    acting = [name for name, acts in zip(robot.names, robot.acting, strict=True) if acts]
    for which, numbers, names in (("state", stats.state, robot.names), ("action", stats.action, acting)):
        found = (
            normalisers.line(which, numbers, names, extras.floor)
            if normalisers
            else line(numbers, robot.normalisation, names, extras.floor)
        )
        if found.raised:
            remarks.append(f"{which}: spread raised to the floor, {extras.floor:g}: {', '.join(found.raised)}")
        lines[which] = found
    if lines["state"].mode != lines["action"].mode:
        lines = {which: each.as_mean_std() for which, each in lines.items()}
    lines["action"] = _spread_out(lines["action"], robot.acting)
    relative = [r or not acts for r, acts in zip(robot.relative, robot.acting, strict=True)]
    return {
        "cameras": [camera.name for camera in robot.cameras],
        "normalisation": lines["state"].mode,
        "state": lines["state"].to_dict(),
        "action": lines["action"].to_dict(),
        "relative": relative,
        "tokenizer": {"kind": "sentencepiece", "file": TOKENIZER, "max_tokens": robot.max_tokens},
        "images": {"size": config.vision.image_size, "resize": "pad", "slots": list(robot.slots.values())},
        "width": config.action_dim,
        "horizon": robot.horizon,
        "prompt": robot.prompt,
        **({"eps": stats.eps} if stats.eps else {}),
    }


def _stats(source: Source, normalisers: lerobot.Normalisers | None, extras: Extras) -> Stats:
    if extras.stats is not None:
        return read_stats(extras.stats)
    if normalisers is not None:
        if (stats := normalisers.stats()) is None:
            raise BundleError(f"{source.folder}: its processors were saved without statistics; give --stats FILE")
        return stats
    if source.layout == "openpi":
        return read_stats(openpi.find_stats(source.folder, extras.asset))
    raise BundleError(f"{source.weights}: a bare file has no statistics; give --stats FILE")


def _spread_out(action: Line, acting: tuple[bool, ...]) -> Line:
    """From the acting joints to all: the others' actions are differences of next to nothing from the state."""
    if all(acting):
        return action
    where = np.array(acting)
    low, high = np.zeros(len(acting)), np.full(len(acting), UNUSED_SPREAD)
    if action.mode == "quantile":
        low -= UNUSED_SPREAD
    low[where], high[where] = action.low, action.high
    return Line(action.mode, low, high, action.raised)


@dataclass(frozen=True, slots=True)
class _At:
    """Side files where they lie now, under the names they will have."""

    paths: Mapping[str, Path]

    def file(self, name: str) -> Path:
        return self.paths[name]
