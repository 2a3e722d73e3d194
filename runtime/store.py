"""Which policy version is live, which was before, and how to go back. Every change survives a crash at any moment.

root/versions/<id>/     sealed bundles (the shelf)
root/live.json          the pointer: the last change, replaced in one step
root/history.jsonl      every change, appended after the pointer
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hotpolicy.runtime import durable
from hotpolicy.runtime.errors import BadRequest, BundleError, UnknownVersion
from hotpolicy.runtime.versions.history import Change, History
from hotpolicy.runtime.versions.shelf import Shelf

log = logging.getLogger(__name__)


class Store(Shelf):
    """A shelf with a pointer to the version that serves."""

    def __init__(self, root: Path | str, lock_timeout_s: float = 10.0):
        super().__init__(root, lock_timeout_s)
        self._pointer = self.root / "live.json"
        self._history = History(self.root / "history.jsonl")

    def find(self, version: str) -> str:
        """As a shelf does; "live" and "previous" are names too."""
        if version == "live":
            return self.live()
        return self._need_previous() if version == "previous" else super().find(version)

    def live(self) -> str:
        """The id of the version to serve. Raises UnknownVersion when the store has none that opens."""
        for version in self.candidates():
            return version
        raise UnknownVersion(f"{self.root} has no version that can be served; add a full bundle first")

    def previous(self) -> str | None:
        """The id of the version a rollback returns to."""
        change = self._read_pointer()
        return change.previous if change else None

    def candidates(self) -> Iterator[str]:
        """Versions whose manifests are whole, best first: live, previous, what was live before (newest first), then
        the newest full bundle. A server takes the first that loads; one is skipped only with a log warning."""
        seen: set[str] = set()
        for version in self._preferences():
            if version in seen:
                continue
            seen.add(version)
            try:
                self.chain(version)
            except (BundleError, UnknownVersion) as error:
                log.warning("version %s cannot be served: %s", version, error)
                continue
            yield version

    def promote(
        self, version: str, by: str, request_id: str, verdict: Mapping[str, Any] | None = None, action: str = "promote"
    ) -> Change:
        """Make a version live; durable when it returns. A request id seen before changes nothing and returns what
        it did. Raises UnknownVersion, BundleError, Busy, OSError; BadRequest for an id used for something else."""
        version = self.find(version)
        with self._locked("pointer"):
            done = self._repeated(request_id, action, version)
            if done:
                return done
            self.chain(version)
            live = self._live_or_none()
            # promoting what is live already must not make it its own way back
            previous = self.previous() if live == version else live
            return self._move(Change(action, version, live, previous, by, _wall_clock(), request_id, verdict))

    def rollback(
        self, by: str, request_id: str, forget: bool = False, verdict: Mapping[str, Any] | None = None
    ) -> Change:
        """Make the previous version live; the one left becomes previous, or with `forget` is not kept as a way back.
        Raises UnknownVersion when there is no previous version; else as `promote`."""
        with self._locked("pointer"):
            done = self._repeated(request_id, "rollback", None)
            if done:
                return done
            live, previous = self._live_or_none(), self._need_previous()
            self.chain(previous)
            change = Change(
                "rollback", previous, live, None if forget else live, by, _wall_clock(), request_id, verdict
            )
            return self._move(change)

    def settle(self, version: str, by: str, request_id: str) -> None:
        """A server serves `version` because the pointer's own does not load: make that the truth. Changes nothing
        when the pointer says so already, or when there is none because nothing was ever promoted: a disk that takes
        no writing can still be served from."""
        if not self._points_elsewhere(version):
            return
        try:
            with self._locked("pointer"):
                if change := self._points_elsewhere(version):
                    self._move(Change("recover", version, change.version, None, by, _wall_clock(), request_id, None))
        except OSError as error:  # policy: what serves is known by looking, as it was this time
            log.warning("%s is served, and the pointer still says otherwise: %s", version, durable.refusal(error))

    def recall(self, request_id: str) -> Change | None:
        """What the request of this id did, if it is among the newest changes."""
        change = self._read_pointer()
        if change and change.request_id == request_id:
            return change
        return self._history.recall(request_id)

    def history(self, limit: int | None = None) -> list[Change]:
        """The newest changes, oldest first, with one whose line a crash kept from being written."""
        changes = self._history.newest(limit)
        change = self._read_pointer()
        if change and (not changes or changes[-1].request_id != change.request_id):
            changes.append(change)
        return changes if limit is None else changes[max(0, len(changes) - limit) :]

    def _move(self, change: Change) -> Change:
        """The pointer goes first, with the change in it: the history never tells of what did not happen, and a
        line that a crash kept out of it is written by the next change."""
        before = self._read_pointer()
        if before and not self._history.recall(before.request_id):
            self._history.append(before)
        durable.replace_file(self._pointer, json.dumps(change.to_dict(), allow_nan=False).encode())
        try:
            self._history.append(change)
        except OSError as error:  # policy: the change is durable in the pointer
            log.warning("%s: the history line waits for the next change: %s", self._history.path, error)
        return change

    def _repeated(self, request_id: str, action: str, version: str | None) -> Change | None:
        done = self.recall(request_id)
        if done and (done.action != action or (version is not None and done.version != version)):
            raise BadRequest(f"request_id: {request_id!r} was used to {done.action} {done.version}")
        return done

    def _read_pointer(self) -> Change | None:
        try:
            data = json.loads(self._pointer.read_bytes())
            return Change.from_dict(data)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s: torn or altered (%s): using the history", self._pointer, error)
            changes = self._history.newest(1)
            return changes[0] if changes else None

    def _preferences(self) -> Iterator[str]:
        change = self._read_pointer()
        if change:
            yield change.version
            if change.previous:
                yield change.previous
        for past in reversed(self._history.newest()):
            yield past.version
        yield from (bundle.id for bundle in reversed(self.versions()) if bundle.manifest.kind == "full")

    def _points_elsewhere(self, version: str) -> Change | None:
        change = self._read_pointer()
        return change if change and change.version != version else None

    def _live_or_none(self) -> str | None:
        return next(self.candidates(), None)

    def _need_previous(self) -> str:
        previous = self.previous()
        if previous is None:
            raise UnknownVersion("there is no previous version to return to")
        return previous


def _wall_clock() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
