"""What is in a dataset, for people: its episodes, totals, cameras and the range each joint went through."""

from __future__ import annotations

from typing import Any

import numpy as np

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.storage import layout
from hotpolicy.finetune.storage.catalog import EpisodeInfo


def describe(dataset: Dataset) -> dict[str, Any]:
    """ "episodes" and "joints": a mapping each; "totals" and "cameras": one. Reads numbers, decodes no pictures."""
    rows = [_episode(dataset, info) for info in dataset.episodes]
    size = sum((dataset.root / file).stat().st_size for file in {f for info in dataset.episodes for f in info.files})
    judged = [info.success for info in dataset.episodes if info.success is not None]
    totals = {
        "episodes": len(dataset),
        "frames": dataset.info.total_frames,
        "seconds": dataset.info.total_frames / dataset.rate_hz,
        "rate_hz": dataset.rate_hz,
        "tasks": len(dataset.tasks),
        "success": f"{sum(judged)} of {len(judged)} judged",
        "interventions": sum(info.interventions for info in dataset.episodes),
        "robot": dataset.info.robot_type,
        "megabytes": size / 1e6,
    }
    cameras = {
        camera.name: f"{camera.width}x{camera.height} {_storage(dataset, camera.name)}" for camera in dataset.cameras
    }
    return {"episodes": rows, "totals": totals, "cameras": cameras, "joints": _joints(dataset)}


def _episode(dataset: Dataset, info: EpisodeInfo) -> dict[str, Any]:
    record = layout.load_record(dataset.root / info.file)
    return {
        "episode": info.index,
        "task": info.task,
        "frames": info.length,
        "seconds": info.length / dataset.rate_hz,
        "success": info.success,
        "interventions": info.interventions,
        "versions": ", ".join(name[:12] for name in _versions(dataset, info)),
        "spilled": record.get("spilled", 0),
        "files": info.files,
    }


def _versions(dataset: Dataset, info: EpisodeInfo) -> list[str]:
    if layout.POLICY not in dataset.features:
        return []
    numbers = layout.load_table(
        dataset.root / info.file, [layout.POLICY], filters=[("episode_index", "=", info.index)]
    ).column(layout.POLICY)
    names = dict(enumerate(dataset.versions))  # of none, where another tool lost meta/hotpolicy.json
    return [names.get(number, f"unknown {number}") for number in sorted(set(numbers.to_pylist())) if number >= 0]


def _storage(dataset: Dataset, camera: str) -> str:
    column = next(c for c in dataset.features if c.startswith("observation.") and c.split(".")[-1] == camera)
    feature = dataset.features[column]
    return str((feature.get("info") or {}).get("video.codec", "png") if feature["dtype"] == "video" else "png")


def _joints(dataset: Dataset) -> list[dict[str, Any]]:
    if not len(dataset):
        return []
    state, action = (dataset.column(name) for name in (layout.STATE, layout.ACTION))
    rows = []
    for number, name in enumerate(dataset.joints):
        went, told = np.sort(state[:, number]), np.sort(action[:, number])
        rows.append(
            {
                "joint": name,
                "lowest": float(went[0]),
                "highest": float(went[-1]),
                "lowest_action": float(told[0]),
                "highest_action": float(told[-1]),
            }
        )
    return rows
