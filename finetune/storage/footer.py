"""Gives a parquet file that was never closed the footer it lacks: every row group that is whole can be read again.

LeRobot writes the footer when a recording ends, so one that is killed leaves all its rows without. The pages are
there, each with a header; which column a page belongs to follows from the order of the columns and how many values
each must have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hotpolicy.finetune.storage.compact import I16, I32, I64, LIST, STRUCT, Struct, read_struct, write_struct

MAGIC = b"PAR1"
DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_2 = 0, 2, 3
KEPT = (1, 2, 3, 4)  # of a column's metadata: type, encodings, path, codec


@dataclass(frozen=True, slots=True)
class _Page:
    at: int  # byte of its header
    size: int  # bytes, header and all
    unpacked: int  # bytes, likewise
    values: int | None  # None: a dictionary


def close_file(content: bytes, features: Mapping[str, Mapping[str, Any]]) -> bytes | None:
    """The file with a footer; None when it has no whole row group of these columns (as in info.json)."""
    template, widths = _template(features)
    pages = list(_pages(content))
    groups: list[Struct] = []
    at = rows = 0
    while (found := _group(pages, at, widths)) is not None:
        count, columns, at = found
        groups.append(_row_group(template, count, columns, len(groups)))
        rows += count
    if not groups:
        return None
    end = pages[at - 1].at + pages[at - 1].size
    footer = write_struct({**template, 3: (I64, rows), 4: (LIST, (STRUCT, groups))})
    closed = content[:end] + footer + len(footer).to_bytes(4, "little") + MAGIC
    try:
        pq.read_table(BytesIO(closed))
    except (OSError, ValueError, pa.ArrowException):
        return None
    return closed


def _pages(content: bytes) -> Iterator[_Page]:
    at = len(MAGIC)
    while at < len(content):
        try:
            header, body = read_struct(content, at)
            kind, unpacked, packed = (header[number][1] for number in (1, 2, 3))
            end = body + packed
            if kind not in (DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_2) or not body < end <= len(content):
                return
            values = None if kind == DICTIONARY_PAGE else header[5 if kind == DATA_PAGE else 8][1][1][1]
        except (ValueError, IndexError, KeyError, TypeError):
            return  # here the writing stopped
        yield _Page(at, end - at, body - at + unpacked, values)
        at = end


def _group(pages: Sequence[_Page], at: int, widths: Sequence[int]) -> tuple[int, list[list[_Page]], int] | None:
    """Rows, pages by column and where the next group begins, of the group that begins with page `at`."""
    values = 0
    for number in range(at, len(pages)):
        if pages[number].values is None:
            if number > at:
                return None
            continue
        values += pages[number].values or 0
        if values % widths[0] == 0 and (found := _filled(pages, at, [values // widths[0] * width for width in widths])):
            return values // widths[0], *found
    return None


def _filled(pages: Sequence[_Page], at: int, wanted: Sequence[int]) -> tuple[list[list[_Page]], int] | None:
    columns = []
    for values in wanted:
        column: list[_Page] = []
        while values > 0:
            if at == len(pages) or (pages[at].values is None and column):
                return None
            column.append(pages[at])
            values -= pages[at].values or 0
            at += 1
        if values < 0:
            return None
        columns.append(column)
    return columns, at


def _row_group(template: Struct, rows: int, columns: Sequence[Sequence[_Page]], number: int) -> Struct:
    chunks: list[Struct] = []
    for known, pages in zip(template[4][1][1][0][1][1][1], columns, strict=True):
        data = [page for page in pages if page.values is not None]
        meta: Struct = {key: known[3][1][key] for key in KEPT}
        meta[5] = I64, sum(page.values or 0 for page in data)
        meta[6] = I64, sum(page.unpacked for page in pages)
        meta[7] = I64, sum(page.size for page in pages)
        meta[9] = I64, data[0].at
        if pages[0].values is None:
            meta[11] = I64, pages[0].at
        chunks.append({2: (I64, 0), 3: (STRUCT, meta)})
    sizes = [(sum(p.unpacked for p in column), sum(p.size for p in column)) for column in columns]
    return {
        1: (LIST, (STRUCT, chunks)),
        2: (I64, sum(unpacked for unpacked, _ in sizes)),
        3: (I64, rows),
        5: (I64, columns[0][0].at),
        6: (I64, sum(packed for _, packed in sizes)),
        7: (I16, number),
    }


def _template(features: Mapping[str, Mapping[str, Any]]) -> tuple[Struct, list[int]]:
    """The footer of a file of one row of these columns, and how many values each of its leaves has in a row."""
    row = {name: _one(feature) for name, feature in features.items() if feature["dtype"] != "video"}
    out = BytesIO()
    pq.write_table(pa.table(row), out, compression="snappy")
    content = out.getvalue()
    size = int.from_bytes(content[-8:-4], "little")
    footer, _ = read_struct(content, len(content) - 8 - size)
    chunks = footer[4][1][1][0][1][1][1]
    assert footer[3][0] == I64
    assert chunks[0][3][1][1][0] == I32
    return footer, [chunk[3][1][5][1] for chunk in chunks]


def _one(feature: Mapping[str, Any]) -> pa.Array:
    """A column of one row, typed as LeRobot types it."""
    dtype, shape = feature["dtype"], list(feature["shape"])
    if dtype == "image":
        return pa.array([{"bytes": b"a", "path": "a"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    if dtype == "string":
        return pa.array(["a"])
    kind = pa.from_numpy_dtype(np.dtype(dtype))
    if shape == [1]:
        return pa.array([0], pa.int64()).cast(kind)
    for _ in shape:
        kind = pa.list_(kind)
    return pa.array([np.zeros(shape, dtype).tolist()], kind)
