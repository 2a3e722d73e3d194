"""An episode's rows of parquet, as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from hotpolicy.finetune.storage import layout
from hotpolicy.finetune.storage.catalog import EpisodeInfo
from hotpolicy.finetune.storage.images import from_png
from hotpolicy.runtime.errors import DatasetError


def load_rows(root: Path, info: EpisodeInfo, columns: list[str]) -> pa.Table:
    """The columns, and frame_index. Raises DatasetError when they are not the rows that metadata promises, whole."""
    path = root / info.file
    table = layout.load_table(path, ["frame_index", *columns], filters=[("episode_index", "=", info.index)])
    if table.column("frame_index").to_pylist() != list(range(info.length)):
        raise DatasetError(
            f"{path}: expected frames 0 to {info.length - 1} of episode {info.index}, found {len(table)} rows"
        )
    empty = [name for name in columns if table.column(name).null_count]
    if empty:
        raise DatasetError(f"{path}: expected a value in every row of {', '.join(empty)}")
    return table


def numbers(rows: pa.Table, name: str, shape: tuple[int, ...], path: Path) -> np.ndarray:
    """(frames,), or (frames, *shape) of a column of lists. Raises DatasetError when a row has more or fewer."""
    column = rows.column(name)
    if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        values = pa.concat_arrays([chunk.flatten() for chunk in column.chunks]).to_numpy(zero_copy_only=False)
        if values.size != len(rows) * int(np.prod(shape)):
            raise DatasetError(f"{path}: {name}: expected {shape} numbers in every row")
        return values.reshape(len(rows), *shape)
    return column.to_numpy()


def embedded(column: pa.ChunkedArray, path: Path) -> np.ndarray:
    """Images within the rows: (frames, height, width, 3) uint8. Raises DatasetError."""
    contents = [row["bytes"] for row in column.to_pylist()]
    if not all(contents):
        raise DatasetError(f"{path}: expected images embedded as bytes, found paths")
    try:
        return np.stack([from_png(content) for content in contents])
    except ValueError as error:  # sizes differ within the episode
        raise DatasetError(f"{path}: {error}") from error
