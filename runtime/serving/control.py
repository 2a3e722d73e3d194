"""What an operator or a trainer may ask of a running server: a message in, a reply out. Knows no socket."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from hotpolicy.runtime import durable
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import BadRequest, Busy, HotpolicyError, SwapRefused, from_code
from hotpolicy.runtime.slot import Slot
from hotpolicy.runtime.store import Store
from hotpolicy.runtime.versions.history import Change

Message = Mapping[str, Any]
REMEMBERED = 256  # newest request ids whose outcome is repeated, not done again
LONGEST_PATH = 4096  # of a folder that is to be swapped in
CHANGING = ("stage", "swap", "promote", "rollback", "shutdown")  # need a request_id


class Control:
    """Call `handle` from a side thread: staging takes as long as a model takes to load."""

    def __init__(self, slot: Slot, store: Store, shutdown: Callable[[], None] | None = None):
        self.slot = slot
        self.store = store
        self._shutdown = shutdown
        self._lock = threading.Lock()
        self._outcomes: OrderedDict[str, tuple[Message, dict[str, Any] | HotpolicyError]] = OrderedDict()
        self._verbs: dict[str, Callable[[Message], dict[str, Any]]] = {
            "stage": self._stage,
            "swap": self._swap,
            "promote": self._promote,
            "rollback": self._rollback,
            "versions": self._versions,
            "status": self._status,
            "history": self._history,
            "shutdown": self._stop,
        }

    def handle(self, message: Message) -> dict[str, Any]:
        """Do what `message["kind"]` names. Raises BadRequest naming the field that is wrong, UnknownVersion,
        SwapRefused with the reason, Busy. A repeated request_id gives the same reply or the same error again."""
        kind = message.get("kind")
        verb = self._verbs.get(kind) if isinstance(kind, str) else None
        if verb is None or not isinstance(kind, str):
            raise BadRequest(f"kind: expected one of {', '.join(self._verbs)}, got {str(kind)[:40]!r}")
        if kind not in CHANGING:
            return {"kind": kind, **verb(message)}
        request_id = _text(message, "request_id")
        version = message.get("version")  # not looked at yet: it may be anything, an array too
        asked = {"kind": kind, "version": version if isinstance(version, str) else None}
        with self._lock:
            known = self._outcomes.get(request_id)
        if known:
            return _repeat(request_id, asked, *known)
        outcome: dict[str, Any] | HotpolicyError
        try:
            outcome = {"kind": kind, "request_id": request_id, **verb(message)}
        except Busy:
            raise  # not remembered: the same request may be tried again
        except HotpolicyError as error:
            # a fresh one: the traceback of this one holds the refused candidate's tensors
            self._remember(request_id, asked, from_code(error.code, str(error)))
            raise
        self._remember(request_id, asked, outcome)
        return outcome

    def _remember(self, request_id: str, asked: Message, outcome: dict[str, Any] | HotpolicyError) -> None:
        with self._lock:
            self._outcomes[request_id] = (asked, outcome)
            if len(self._outcomes) > REMEMBERED:
                self._outcomes.popitem(last=False)

    def _stage(self, message: Message) -> dict[str, Any]:
        verdict = self.slot.stage(self._known(message))
        return {"version": verdict.version, "verdict": verdict.to_dict()}

    def _swap(self, message: Message) -> dict[str, Any]:
        request_id, started = _text(message, "request_id"), now()
        version = self._known(message)
        done = self.store.recall(request_id)  # from before a restart
        if done is None and version == self.slot.live.version:
            return {"version": version, "before": version, "changed": False}
        verdict = None
        if done is None and not (self.slot.previous and self.slot.previous.version == version):
            verdict = self.slot.stage(version)
        reply = self._move(lambda: self.slot.promote(version, request_id, _by(message)))
        phases = {"load_ms": verdict.load_ms, "verify_ms": verdict.verify_ms} if verdict else {}
        return {**reply, **phases, "total_ms": (now() - started) * 1000}

    def _known(self, message: Message) -> str:
        """The id of the version that is named. A folder of this machine, named from its root, is added to the store
        first, verified whole. Raises UnknownVersion, BundleError, Busy, SwapRefused."""
        version = _text(message, "version", LONGEST_PATH)
        if not version.startswith("/"):
            return self.store.find(version)
        try:
            return self.store.add(version)
        except OSError as error:
            raise SwapRefused(f"{version}: the server cannot take it in: {durable.refusal(error)}") from error

    def _promote(self, message: Message) -> dict[str, Any]:
        version, request_id = _text(message, "version"), _text(message, "request_id")
        return self._move(lambda: self.slot.promote(version, request_id, _by(message)))

    def _rollback(self, message: Message) -> dict[str, Any]:
        request_id = _text(message, "request_id")
        return self._move(lambda: self.slot.rollback(request_id, _by(message)))

    def _move(self, move: Callable[[], Change]) -> dict[str, Any]:
        started = now()
        change = move()
        return {
            "version": change.version,
            "before": change.before,
            "previous": change.previous,
            "verdict": change.verdict,
            "changed": True,
            "flip_ms": self.slot.flip_ms,
            "promote_ms": (now() - started) * 1000,  # the pointer on disk, then the flip
        }

    def _versions(self, message: Message) -> dict[str, Any]:
        held = {"live": self.slot.live, "previous": self.slot.previous, "staged": self.slot.staged}
        roles = {policy.version: role for role, policy in held.items() if policy}
        return {
            "versions": [
                {
                    "id": bundle.id,
                    "kind": bundle.manifest.kind,
                    "parent": bundle.manifest.parent,
                    "family": bundle.manifest.model["family"],
                    "tensors": len(bundle.manifest.tensors),
                    "verdict": _brief(bundle.manifest.verdict),
                    "provenance": _brief(bundle.manifest.provenance),
                    "role": roles.get(bundle.id),
                }
                for bundle in self.store.versions()
            ]
        }

    def _status(self, message: Message) -> dict[str, Any]:
        slot = self.slot
        return {
            "live": slot.live.version,
            "digest": slot.live.digest,
            "previous": self.store.previous(),
            "previous_warm": slot.previous is not None,
            "staged": slot.staged.version if slot.staged else None,
            "pinned": slot.pinned,
            "faults": slot.faults,
            "retreats": slot.retreats,
        }

    def _history(self, message: Message) -> dict[str, Any]:
        limit = message.get("limit", 100)
        if type(limit) is not int or not 1 <= limit <= 10_000:
            raise BadRequest(f"limit: expected 1 to 10000 changes, got {str(limit)[:40]!r}")
        return {"changes": [change.to_dict() for change in self.store.history(limit)]}

    def _stop(self, message: Message) -> dict[str, Any]:
        if self._shutdown is None:
            raise BadRequest("shutdown: this server cannot be stopped by a message")
        self._shutdown()
        return {"stopping": True}


def _brief(value: Mapping[str, Any] | None, levels: int = 2) -> dict[str, Any] | None:
    """What a list of versions says of each: without learning curves and tables in tables, which are in its manifest;
    the wire takes so many levels only."""
    if value is None:
        return None
    found: dict[str, Any] = {}
    for name, inner in value.items():
        if _depth(inner) <= levels:
            found[name] = inner
        elif isinstance(inner, Mapping) and levels > 1 and (rest := _brief(inner, levels - 1)):
            found[name] = rest
    return found


def _depth(value: Any) -> int:
    """Maps and lists inside one another."""
    if not isinstance(value, Mapping | list):
        return 0
    return 1 + max((_depth(inner) for inner in (value.values() if isinstance(value, Mapping) else value)), default=0)


def _text(message: Message, name: str, longest: int = 200) -> str:
    value = message.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= longest or not value.isprintable():
        raise BadRequest(f"{name}: expected a text of 1 to {longest} printable characters, got {str(value)[:40]!r}")
    return value


def _by(message: Message) -> str:
    return _text(message, "by") if "by" in message else "unknown"


def _repeat(
    request_id: str, asked: Message, before: Message, outcome: dict[str, Any] | HotpolicyError
) -> dict[str, Any]:
    if asked != before:
        raise BadRequest(f"request_id: {request_id!r} was used to {before['kind']} {before['version'] or ''}".rstrip())
    if isinstance(outcome, HotpolicyError):
        raise from_code(outcome.code, str(outcome))
    return outcome
