"""Who promoted what, when, on which verdict: an append-only file of JSON lines that outlives a torn last line."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hotpolicy.runtime import durable

REMEMBERED = 1024  # newest request ids kept in memory: a request repeated within these changes nothing
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """One move of the live pointer."""

    action: str  # "promote", "rollback" or "recover"
    version: str  # what became live
    before: str | None  # what was live
    previous: str | None  # what a rollback would now return to
    by: str
    at: str  # wall clock, ISO 8601 UTC: for people, never compared
    request_id: str
    verdict: Mapping[str, Any] | None  # what the checks measured

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Change:
        """Raises KeyError or TypeError when a field is missing or not known."""
        change = cls(**data)
        if not isinstance(change.version, str) or not isinstance(change.request_id, str):
            raise TypeError("version and request_id are texts")
        return change


class History:
    """Reads only what was appended since it last looked; not safe for threads by itself (the store locks)."""

    def __init__(self, path: Path):
        self.path = path
        self._offset = 0  # bytes read
        self._recent: OrderedDict[str, Change] = OrderedDict()  # by request id

    def append(self, change: Change) -> None:
        """Durable when it returns. Raises OSError."""
        durable.append_line(self.path, json.dumps(change.to_dict(), allow_nan=False))

    def recall(self, request_id: str) -> Change | None:
        """What a request of this id did, if it is among the newest."""
        self._catch_up()
        return self._recent.get(request_id)

    def newest(self, limit: int | None = None) -> list[Change]:
        """The newest `limit` changes, oldest first."""
        changes = list(_parse(self.path, _read(self.path, 0)))
        return changes if limit is None else changes[max(0, len(changes) - limit) :]

    def _catch_up(self) -> None:
        data = _read(self.path, self._offset)
        whole = data[: data.rfind(b"\n") + 1]  # a line without its end may still be growing
        self._offset += len(whole)
        for change in _parse(self.path, whole):
            self._recent[change.request_id] = change
            self._recent.move_to_end(change.request_id)
            if len(self._recent) > REMEMBERED:
                self._recent.popitem(last=False)


def _read(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read()
    except FileNotFoundError:
        return b""


def _parse(path: Path, data: bytes) -> Iterator[Change]:
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        try:
            yield Change.from_dict(json.loads(line))
        except (ValueError, KeyError, TypeError):  # policy: a crash can tear one line; the others still tell
            log.warning("%s: skipped a line that is not a change: %.60r", path, line)
