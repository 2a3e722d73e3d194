"""Per-column statistics as LeRobot stores them: of an episode, and merged over episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Stats = dict[str, np.ndarray]  # min, max, mean, std, count (1,), q01, q10, q50, q90, q99

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
SIDE = 150  # pixels an image is thinned to, about, before it is counted


def of_numbers(values: np.ndarray) -> Stats:
    """Statistics of a (frames,) or (frames, n) column; each of shape (1,) or (n,)."""
    table = values.astype(np.float64).reshape(len(values), -1)
    quantiles = np.quantile(table, list(QUANTILES.values()), axis=0)
    return {
        "min": table.min(axis=0),
        "max": table.max(axis=0),
        "mean": table.mean(axis=0),
        "std": table.std(axis=0),
        "count": np.array([len(values)]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


class ImageStats:
    """Counts the 256 levels of each channel as frames come; statistics in [0, 1], of shape (3, 1, 1)."""

    def __init__(self, levels: np.ndarray | None = None, frames: int = 0) -> None:
        """`levels` (3, 256): the counts so far, of so many frames; None: none yet."""
        self.frames = frames
        self.levels = np.zeros((3, 256), dtype=np.int64) if levels is None else levels

    def add(self, image: np.ndarray) -> None:
        """Count one (height, width, 3) uint8 image."""
        stride = max(1, max(image.shape[:2]) // SIDE)
        for channel in range(3):
            thinned = image[::stride, ::stride, channel]
            self.levels[channel] += np.bincount(thinned.ravel(), minlength=256)
        self.frames += 1

    def stats(self) -> Stats:
        levels = np.arange(256) / 255.0
        share = self.levels / self.levels.sum(axis=1, keepdims=True)
        cumulated = np.cumsum(share, axis=1)
        mean = share @ levels
        seen = self.levels > 0
        channels: Stats = {
            "min": levels[seen.argmax(axis=1)],
            "max": levels[255 - seen[:, ::-1].argmax(axis=1)],
            "mean": mean,
            "std": np.sqrt(np.maximum(0.0, share @ levels**2 - mean**2)),
            **{name: levels[(cumulated < q - 1e-12).sum(axis=1).clip(max=255)] for name, q in QUANTILES.items()},
        }
        return {**{name: value.reshape(3, 1, 1) for name, value in channels.items()}, "count": np.array([self.frames])}


def merge(parts: Sequence[Stats]) -> Stats:
    """Statistics over episodes from those of each: exact, but for the quantiles.

    Those are envelopes (the lowest of the low ones, the highest of the high ones), as LeRobot merges them; who
    normalises by quantiles should take them from the frames.
    """
    counts = np.stack([part["count"] for part in parts])
    weight = counts.reshape((len(parts),) + (1,) * parts[0]["mean"].ndim) / counts.sum()
    means = np.stack([part["mean"] for part in parts])
    mean = (means * weight).sum(axis=0)
    variances = np.stack([part["std"] for part in parts]) ** 2 + (means - mean) ** 2
    merged = {
        "min": np.min([part["min"] for part in parts], axis=0),
        "max": np.max([part["max"] for part in parts], axis=0),
        "mean": mean,
        "std": np.sqrt((variances * weight).sum(axis=0)),
        "count": counts.sum(axis=0),
    }
    for name, quantile in QUANTILES.items():
        if all(name in part for part in parts):
            merged[name] = (np.min if quantile <= 0.5 else np.max)([part[name] for part in parts], axis=0)
    return merged


def merge_columns(episodes: Sequence[Mapping[str, Stats]]) -> dict[str, Stats]:
    """Merge the statistics of many episodes, column by column."""
    columns = {name for episode in episodes for name in episode}
    return {name: merge([episode[name] for episode in episodes if name in episode]) for name in sorted(columns)}


def to_lists(stats: Mapping[str, Stats]) -> dict[str, dict[str, Any]]:
    """As JSON takes it."""
    return {column: {name: value.tolist() for name, value in parts.items()} for column, parts in stats.items()}
