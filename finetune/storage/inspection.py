"""Every byte of an episode, looked at: sums, rows, counters, pictures and statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hotpolicy.finetune.storage import layout
from hotpolicy.finetune.storage.catalog import EpisodeInfo, camera_columns
from hotpolicy.finetune.storage.damage import Damage, Survey, some
from hotpolicy.finetune.storage.images import from_png, walk_video
from hotpolicy.finetune.storage.stats import Stats, merge_columns, of_numbers
from hotpolicy.finetune.storage.survey import survey
from hotpolicy.runtime.digest import file_sha256
from hotpolicy.runtime.errors import DatasetError

ALTERED = "altered since it was recorded (sha256 differs)"
CLOSE = 1e-3  # s, and share of a statistic's size: how far metadata may be off its frames


def check(root: Path) -> tuple[Survey, list[Damage]]:
    """All that is wrong with what is sealed in a dataset. Raises DatasetError as `survey` does."""
    found = survey(root)
    counted = set(found.sealed)
    damages = [damage for damage in found.damages if damage.episode is None or damage.episode in counted]
    for index in found.sealed:
        if index in found.episodes:
            damages += inspect(found, found.episodes[index])
    return found, [*dict.fromkeys([*damages, *inspect_whole(found)])]


def inspect(found: Survey, episode: EpisodeInfo, altered: bool = True) -> Iterator[Damage]:
    """What is wrong with one episode. `altered`: compare files with the sums they were recorded with."""
    root = found.root
    for file in episode.files if altered else ():
        if (root / file).is_file() and _known(found, file) not in (None, file_sha256(root / file)):
            yield Damage(file, ALTERED, episode.index)
    try:
        columns = load_columns(found, episode)
        yield from _rows(found, episode, columns)
        yield from _meta(found, episode, columns)
    except DatasetError as error:
        yield _damage(root, episode.file, error, episode)
    yield from _pictures(found, episode)


def load_columns(found: Survey, episode: EpisodeInfo) -> dict[str, np.ndarray]:
    """The episode's columns of numbers: (frames,) or (frames, ...). Raises DatasetError."""
    numbers = {
        name: feature
        for name, feature in found.info.features.items()
        if feature["dtype"] not in ("image", "video", "string")
    }
    table = layout.load_table(found.root / episode.file, list(numbers), filters=[("episode_index", "=", episode.index)])
    if len(table) != episode.length:
        raise DatasetError(f"{found.root / episode.file}: expected {episode.length} rows, found {len(table)}")
    empty = [name for name in numbers if table.column(name).null_count]
    if empty:
        raise DatasetError(f"{found.root / episode.file}: expected a value in every row of {', '.join(empty)}")
    return {name: _values(table.column(name), feature["shape"], len(table)) for name, feature in numbers.items()}


def _values(column: pa.ChunkedArray, shape: Any, length: int) -> np.ndarray:
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)):
        return column.to_numpy()
    flat = np.array([np.ravel(value) for value in column.to_pylist()])
    if flat.size != length * int(np.prod(shape)):
        raise DatasetError(f"expected {tuple(shape)} numbers in every row")
    return flat.reshape(length, *shape).astype(kind.value_type.to_pandas_dtype())


def _rows(found: Survey, episode: EpisodeInfo, columns: Mapping[str, np.ndarray]) -> Iterator[Damage]:
    length = episode.length
    expected = {
        "frame_index": np.arange(length),
        "index": np.arange(episode.first, episode.first + length),
        "timestamp": np.arange(length) / found.info.fps,
    }
    for name, values in expected.items():
        if name in columns and not np.allclose(columns[name], values, rtol=0, atol=1e-3 if name == "timestamp" else 0):
            yield Damage(
                episode.file, f"{name} does not count on from {values[0]:g}", episode.index, name != "frame_index"
            )
    tasks = sorted({int(number) for number in columns.get("task_index", ())})
    if [found.tasks[n] if 0 <= n < len(found.tasks) else None for n in tasks] != [episode.task]:
        yield Damage(episode.file, f"task_index {tasks} is not {episode.task!r}", episode.index, True)
    if layout.POLICY in columns and columns[layout.POLICY].max() >= len(found.extra.get("policy_versions", ())):
        yield Damage(layout.EXTRA, "lacks the name of a policy version that acted", episode.index, True)
    for name, numbers in columns.items():
        if np.issubdtype(numbers.dtype, np.floating) and not np.isfinite(numbers).all():
            yield Damage(episode.file, f"{name} has numbers that are not finite", episode.index)


def _meta(found: Survey, episode: EpisodeInfo, columns: Mapping[str, np.ndarray]) -> Iterator[Damage]:
    row = found.rows.get(episode.index)
    if row is None:
        return
    if row.get("dataset_to_index", episode.first + episode.length) != episode.first + episode.length:
        yield Damage("meta/episodes", "dataset_to_index is not where it ends", episode.index, True)
    for column in camera_columns(found.info).values():
        ends = row.get(f"videos/{column}/to_timestamp")
        if (
            ends is not None
            and abs(ends - row[f"videos/{column}/from_timestamp"] - episode.length / found.info.fps) > CLOSE
        ):
            yield Damage(
                "meta/episodes", f"the clip of {column} does not last as long as its rows", episode.index, True
            )
    for name, values in columns.items():
        noted = {part: row.get(f"stats/{name}/{part}") for part in ("min", "max", "mean")}
        if None in noted.values() or not np.isfinite(values.astype(np.float64)).all():
            continue
        if not _agree(of_numbers(values), {part: np.array(value) for part, value in noted.items()}):
            yield Damage("meta/episodes", f"statistics of {name} are not those of its rows", episode.index, True)


def _agree(ours: Stats, theirs: Mapping[str, np.ndarray]) -> bool:
    return all(
        np.allclose(np.ravel(ours[part]), np.ravel(value), rtol=CLOSE, atol=1e-5) for part, value in theirs.items()
    )


def _pictures(found: Survey, episode: EpisodeInfo) -> Iterator[Damage]:
    for name, column in camera_columns(found.info).items():
        shape = found.info.features[column]["shape"]
        file = episode.clips[name].file if name in episode.clips else episode.file
        try:
            sizes = {image.shape for image in pictures(found, episode, name)}
        except DatasetError as error:
            yield _damage(found.root, file, error, episode, name)
            continue
        if any(sorted(size) != sorted(shape) for size in sizes):
            yield Damage(file, f"{name}: expected images of {shape}, got {sizes}", episode.index)


def pictures(found: Survey, episode: EpisodeInfo, camera: str) -> Iterator[np.ndarray]:
    """A camera's frames, one by one: (height, width, 3) uint8. Raises DatasetError."""
    if camera in episode.clips:
        clip = episode.clips[camera]
        if not (found.root / clip.file).is_file():
            raise DatasetError("missing")
        times = [i / found.info.fps for i in range(episode.length)]
        yield from walk_video(found.root / clip.file, clip.start, times)
    else:
        yield from _embedded(found, episode, camera_columns(found.info)[camera])


def _embedded(found: Survey, episode: EpisodeInfo, column: str) -> Iterator[np.ndarray]:
    table = layout.load_table(found.root / episode.file, [column], filters=[("episode_index", "=", episode.index)])
    for row in table.column(column).to_pylist():
        if not row or not row["bytes"]:
            raise DatasetError("expected images embedded as bytes, found none")
        yield from_png(row["bytes"])


def inspect_whole(found: Survey) -> Iterator[Damage]:
    """What is wrong with the statistics of the whole dataset."""
    if not found.sealed:
        return
    try:
        noted = layout.load_json(found.root, layout.STATS)
    except DatasetError as error:
        yield Damage(layout.STATS, "missing" if not (found.root / layout.STATS).exists() else str(error))
        return
    parts = [stats_of(found.rows[index]) for index in found.sealed if index in found.rows]
    wrong = _wrong(parts, noted)
    if wrong and (ahead := found.rows.get(len(found.sealed))):
        # a crash came between this file and info.json, which is written last: opening puts it right
        wrong = wrong if _wrong([*parts, stats_of(ahead)], noted) else []
    yield from wrong


def _wrong(parts: list[dict[str, Stats]], noted: Mapping[str, Any]) -> list[Damage]:
    lacking, other = [], []
    for name, merged in merge_columns(parts).items():
        if name not in noted:
            lacking.append(name)
        elif not _agree(merged, {part: np.array(noted[name][part]) for part in ("min", "max", "mean")}):
            other.append(name)
    kinds = (("lacks", lacking), ("not the episodes' own:", other))
    return [Damage(layout.STATS, f"{what} {some(names)}") for what, names in kinds if names]


def stats_of(row: Mapping[str, Any]) -> dict[str, Stats]:
    """The statistics in an episode's row of metadata, by column."""
    columns: dict[str, Stats] = {}
    for name, value in row.items():
        if name.startswith("stats/") and value is not None:
            _, column, part = name.split("/", 2)
            columns.setdefault(column, {})[part] = np.array(value)
    return columns


def _known(found: Survey, file: str) -> str | None:
    known = found.extra.get("sha256", {}).get(file)
    return None if known is None else str(known)


def _damage(root: Path, file: str, error: Exception, episode: EpisodeInfo, camera: str = "") -> Damage:
    text = str(error).replace(f"{root}/", "").removeprefix(f"{file}: ")
    return Damage(file, f"{camera}: {text}" if camera else text, episode.index)
