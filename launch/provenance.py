"""`hotpolicy provenance`: which demonstrations made a version, or the action at a frame. Needs no server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotpolicy.launch import console
from hotpolicy.launch.options import STORE, AsJson, StoreFolder
from hotpolicy.runtime.errors import ConfigError, DatasetError, UnknownVersion

if TYPE_CHECKING:
    from rich.tree import Tree

    from hotpolicy.runtime.bundle import Bundle
    from hotpolicy.runtime.store import Store

Facts = dict[str, Any]


def provenance(
    version: Annotated[
        str | None, typer.Argument(help="Version id or a unique beginning of one, live, previous, or a candidate.")
    ] = None,
    store: StoreFolder = STORE,
    dataset: Annotated[Path | None, typer.Option(help="Instead: the version that acted in this dataset, ...")] = None,
    episode: Annotated[int | None, typer.Option(min=0, help="... in this episode, ...")] = None,
    frame: Annotated[int, typer.Option(min=0, help="... at this frame.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Tell where a version comes from: itself and every version it was made from, each with the datasets and episodes
    it learned from. With --dataset and --episode, of the version that acted at a recorded frame."""
    if (version is None) == (dataset is None):
        raise ConfigError("version: expected one, or --dataset with --episode")
    if (dataset is None) != (episode is None):
        raise ConfigError("dataset: expected --dataset and --episode together")
    from hotpolicy.launch.versions import open_store

    versions = open_store(store)
    if dataset is not None and episode is not None:
        facts = of_frame(versions, dataset, episode, frame)
    else:
        assert version is not None
        facts = {"chain": of_version(versions, version)}
    if as_json:
        console.show_one(facts, as_json)
    else:
        _print(facts)


def of_frame(store: Store, root: Path, episode: int, frame: int) -> Facts:
    """Who acted at a recorded frame, and if it was a policy, where that comes from. Raises DatasetError,
    UnknownVersion."""
    from hotpolicy.finetune.dataset import Dataset

    dataset = Dataset.open(root)
    if not episode < len(dataset):
        raise DatasetError(f"{root}: episode: expected 0 to {len(dataset) - 1}, got {episode}")
    recorded = dataset.episode(episode, ())
    if not frame < len(recorded.state):
        raise DatasetError(f"{root}: frame: expected 0 to {len(recorded.state) - 1} in episode {episode}, got {frame}")
    acted = recorded.versions[frame]
    return {
        "dataset": str(root),
        "digest": dataset.digest,
        "episode": episode,
        "frame": frame,
        "task": recorded.task,
        "intervention": bool(recorded.intervention[frame]),
        "action": [round(float(value), 4) for value in recorded.action[frame]],
        "version": acted,
        "chain": of_version(store, acted) if acted is not None else [],
    }


def of_version(store: Store, version: str) -> list[Facts]:
    """The version, then what it was made from, down to a full one. Raises UnknownVersion, BundleError."""
    return [_facts(bundle) for bundle in reversed(_chain(store, version))]


def _chain(store: Store, version: str) -> list[Bundle]:
    try:
        return store.chain(store.find(version))
    except UnknownVersion:
        from hotpolicy.runtime.bundle import Bundle

        # What the gate refused is beside the store, not in it.
        found = [path for path in (store.root / "candidates").glob(f"{version}*") if (path / "manifest.json").is_file()]
        if len(found) != 1:
            raise
        candidate = Bundle.open(found[0])
        assert candidate.manifest.parent is not None
        return [*store.chain(candidate.manifest.parent), candidate]


def _facts(bundle: Bundle) -> Facts:
    manifest = bundle.manifest
    made, verdict = manifest.provenance, manifest.verdict
    config = made.get("config") or {}
    names = ("made_by", "job", "strategy", "steps", "weights_of_step", "frames", "replayed_frames", "stopped", "notes")
    return {
        "version": bundle.id,
        "digest": bundle.digest,
        "kind": manifest.kind,
        "parent": manifest.parent,
        **{name: made[name] for name in names if name in made},
        "seed": config.get("seed"),
        "datasets": [dict(entry) for entry in made.get("datasets", ())],
        "verdict": verdict and {name: verdict.get(name) for name in ("passed", "decided_by", "reasons")},
    }


def _print(facts: Facts) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.tree import Tree

    screen = Console(highlight=False, soft_wrap=True)
    if "dataset" in facts:
        who = "a person, who had taken over" if facts["intervention"] else facts["version"] or "a person or a script"
        screen.print(escape(f"{facts['dataset']}, episode {facts['episode']}, frame {facts['frame']}: {who} acted"))
        screen.print(escape(f"task: {facts['task']}; action: {facts['action']}"))
    tree: Tree | None = None
    branch: Tree | None = None
    for entry in facts["chain"]:
        label = escape(_label(entry))
        branch = branch.add(label) if branch else Tree(label)
        tree = tree or branch
        for line in _lines(entry):
            branch.add(escape(line))
    if tree:
        screen.print(tree)


def _label(entry: Facts) -> str:
    made = entry.get("strategy") or entry.get("made_by") or "unknown origin"
    steps = f", weights of step {entry['weights_of_step']} of {entry['steps']}" if "weights_of_step" in entry else ""
    seed = f", seed {entry['seed']}" if entry["seed"] is not None else ""
    return f"{entry['version']} {entry['kind']}: {made}{steps}{seed}"


def _lines(entry: Facts) -> list[str]:
    lines = []
    for source in entry["datasets"]:
        failed = f", {source['failed']} failures left out" if source.get("failed") else ""
        lines.append(
            f"{source['root']} sha256 {source['digest'][:16]}: episodes {spans(source['episodes'])}; "
            f"held out {spans(source['held_out'])}{failed}"
        )
    if entry.get("replayed_frames"):
        lines.append(f"{entry['frames']} frames, and {entry['replayed_frames']} replayed of older tasks")
    lines += entry.get("notes", [])
    if verdict := entry["verdict"]:
        word = "passed" if verdict["passed"] else f"refused: {'; '.join(verdict['reasons'] or ())}"
        lines.append(f"gate: {word}, by {verdict['decided_by']}")
    return lines


def spans(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts) or "none"
