"""Everything a dataset folder holds, read as far as it can be: what `check` names and what `repair` can build on.

Where `Dataset.open` stops at the first thing that is wrong, a survey goes on. Metadata that is missing is derived from
the files: our own say what they are (`layout.load_record`), LeRobot's from the order in which it writes.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hotpolicy.finetune.storage import layout
from hotpolicy.finetune.storage.damage import Damage, Survey, one_line
from hotpolicy.finetune.storage.layout import Info
from hotpolicy.finetune.storage.remade import info_of_files, record_of
from hotpolicy.finetune.storage.traces import find_episodes
from hotpolicy.runtime.errors import DatasetError


def survey(root: Path) -> Survey:
    """Raises DatasetError when nothing can be made of the folder: it is none, or its `info.json` is lost and cannot be
    made again."""
    damages: list[Damage] = []
    try:
        info = Info.load(root)
    except DatasetError as error:
        rebuilt = info_of_files(root) if root.is_dir() else None
        if rebuilt is None:
            raise
        text = str(error).replace(f"{root}/", "").removeprefix(f"{root}: ").removeprefix(f"{layout.INFO}: ")
        text = text if (root / layout.INFO).exists() else "missing"
        damages.append(Damage(layout.INFO, text))
        info = rebuilt
    found = Survey(root, info, [], {}, {}, damages=damages)
    _read_meta(found)
    find_episodes(found)
    _read_tasks(found)
    _read_extra(found)
    found.leftovers = _leftovers(root)
    return found


def _read_meta(found: Survey) -> None:
    for path in sorted((found.root / "meta/episodes").glob("*/*.parquet")):
        file = str(path.relative_to(found.root))
        try:
            table = layout.load_table(path, ["episode_index"], optional=pq.read_schema(path).names)
        except (DatasetError, OSError, pa.ArrowException) as error:
            found.note(file, one_line(error))
            continue
        for row in table.to_pylist():
            if row["episode_index"] in found.rows:
                found.note(file, "described twice", row["episode_index"])
            found.rows.setdefault(row["episode_index"], row)


def _read_tasks(found: Survey) -> None:
    try:
        found.tasks = layout.load_tasks(found.root) if found.episodes else []
    except DatasetError as error:
        found.note(layout.TASKS, error)
        found.tasks = _tasks_of_rows(found)
        return
    used = {e.task for e in found.episodes.values() if e.index in found.sealed}
    for task in sorted(used - set(found.tasks)):
        found.note(layout.TASKS, f"lacks the task {task!r}")
        found.tasks.append(task)
    if len(found.tasks) < found.info.total_tasks:
        found.note(layout.TASKS, f"expected {found.info.total_tasks} tasks, found {len(found.tasks)}")


def _tasks_of_rows(found: Survey) -> list[str]:
    """By the numbers that the frames give them."""
    named: dict[int, str] = {}
    for episode in found.episodes.values():
        try:
            column = layout.load_table(
                found.root / episode.file, ["task_index"], filters=[("episode_index", "=", episode.index)]
            ).column("task_index")
        except DatasetError:
            continue
        if len(column):
            named.setdefault(column[0].as_py(), episode.task)
    return [named.get(number, f"task {number}, of no episode") for number in range(max(named, default=-1) + 1)]


def _read_extra(found: Survey) -> None:
    records = {e.index: record_of(found.root / e.file) for e in found.episodes.values()}
    try:
        if (found.root / layout.EXTRA).exists():
            found.extra = layout.load_json(found.root, layout.EXTRA)
        elif any(records.values()):
            found.note(layout.EXTRA, "missing")
    except DatasetError as error:
        found.note(layout.EXTRA, error)
    names = {number: name for record in records.values() for name, number in record.get("versions", {}).items()}
    known = list(found.extra.get("policy_versions", ()))
    longest = max([len(known) - 1, *names])
    versions = [known[i] if i < len(known) else names.get(i, f"version {i}, unknown") for i in range(longest + 1)]
    spec = found.extra.get("spec") or next((record["spec"] for record in records.values() if record), None)
    if spec:
        sums = found.extra.get("sha256", {})
        found.extra = {"schema": 1, "spec": spec, "policy_versions": versions, "sha256": sums}


def _leftovers(root: Path) -> list[str]:
    work = [path for path in (root / layout.WORK).glob("**/*") if path.is_file() and path.name != "lock"]
    temporary = [*(root / "meta").glob("**/.*.tmp"), *(p for p in (root / "images").glob("**/*") if p.is_file())]
    return sorted(str(path.relative_to(root)) for path in (*work, *temporary))
