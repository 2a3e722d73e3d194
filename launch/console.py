"""How the command line shows data: a table for people, or one JSON document for programs. Always on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Row = Mapping[str, Any]


def complain(text: str) -> None:
    """One line for whoever started the command; nothing of it on stdout."""
    print(f"hotpolicy: {text}", file=sys.stderr, flush=True)


def show(rows: Sequence[Row], columns: Sequence[str], as_json: bool) -> None:
    """`columns` of each row as a table; as JSON, the whole rows."""
    if as_json:
        typer.echo(json.dumps(list(rows), indent=2))
        return
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    Console(soft_wrap=False).print(table)


def show_one(row: Row, as_json: bool) -> None:
    """One mapping, a line for each key."""
    if as_json:
        typer.echo(json.dumps(row, indent=2))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for key, value in row.items():
        table.add_row(key.replace("_", " "), _cell(value))
    Console().print(table)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(inner)}" for key, inner in value.items())
    return escape(str(value))  # rich would take the [server] of a pip command for a style
