"""The versions in memory: live, staged, previous. A swap is a pointer flip; all the work is done before it.

Rule 1: the inference thread calls `policy_for` and `report_...` only, and none waits for a disk or a model.
Rule 2: the pointer on disk moves first, then the one in memory, so a crash restarts on what was promised.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import HotpolicyError, SwapRefused, UnknownVersion
from hotpolicy.runtime.messages import Boundary
from hotpolicy.runtime.store import Store
from hotpolicy.runtime.versions.checks import Checks, ServedPolicy, Verdict
from hotpolicy.runtime.versions.held import Held
from hotpolicy.runtime.versions.history import Change
from hotpolicy.runtime.versions.loader import CANDIDATE_FAULTS, Load, Loaded, Loader, one_line
from hotpolicy.runtime.versions.pins import Pins
from hotpolicy.runtime.versions.tenure import Tenure
from hotpolicy.runtime.versions.watch import Trip

log = logging.getLogger(__name__)


class Slot:
    """Loads the store's last good version. In memory are at most live, previous, staged, the full versions they
    share tensors with, and versions that a session's episode still holds."""

    def __init__(self, store: Store, load: Load, checks: Checks | None = None):
        """Raises UnknownVersion for an empty store, BundleError when no version in it can be served."""
        self.store = store
        self.checks = checks or Checks()
        self.flip_ms = 0.0  # how long the last promotion or rollback held the pointers
        self.promotions = 0
        self.rollbacks: Counter[str] = Counter()  # by cause: "command", or that of a Trip
        self.refusals = 0  # candidates that were not staged or promoted
        self.last_retreat = ""  # which version was rolled back automatically, and why
        self.swap_ms: dict[str, float] = {}  # of the last swap: load, verify, promote (the pointer on disk, then flip)
        self._loader = Loader(store, load, self.checks)
        self._staging = threading.Lock()  # one candidate at a time
        self._moving = threading.Lock()  # one promotion or rollback at a time; never held while a candidate loads
        self._pins = Pins()
        self._retreat: threading.Thread | None = None
        self._restarts = 0  # of the engine
        self._held = Held(self._loader.first())
        self._tenure = Tenure(self._held.live, self.checks)

    # the inference thread's side

    def policy_for(self, session: str, boundary: Boundary, episode: int) -> ServedPolicy:
        """The version to answer with now: live, or for "episode" the one this episode of the session began with."""
        if boundary == "chunk":
            self._pins.drop(session)
            return self._held.live.policy
        return self._pins.hold(session, episode, lambda: self._held.live.policy)

    def forget(self, session: str) -> None:
        """The session is gone: its episode holds no version any more."""
        self._pins.drop(session)

    def report_fault(self, version: str) -> None:
        """`version` answered with NaN or infinity, or failed. After `checks.max_faults` since its promotion, the
        previous version is made live again by a side thread, and this one is not kept as a way back."""
        tenure = self._tenure
        if version == tenure.version and (trip := tenure.fault()):
            self._give_up(tenure, trip)

    def report_batch(self, version: str, actions: np.ndarray, ms: float, waited_ms: float = 0.0) -> None:
        """`version` answered a batch with these (n, horizon, joints) finite actions in so long, of which it waited
        for a processor so long: that is not the version's. When the guard trips (see watch.py), the previous
        version is made live again, as for faults."""
        tenure = self._tenure
        if version == tenure.version and (trip := tenure.batch(actions, ms, waited_ms)):
            self._give_up(tenure, trip)

    # what is held

    @property
    def live(self) -> ServedPolicy:
        return self._held.live.policy

    @property
    def previous(self) -> ServedPolicy | None:
        return self._held.previous.policy if self._held.previous else None

    @property
    def staged(self) -> ServedPolicy | None:
        return self._held.staged.policy if self._held.staged else None

    @property
    def pinned(self) -> dict[str, int]:
        """Version -> sessions whose episode holds it."""
        return self._pins.versions()

    @property
    def faults(self) -> int:
        return self._tenure.faults

    @property
    def retreats(self) -> int:
        """Automatic rollbacks."""
        return self.rollbacks.total() - self.rollbacks["command"]

    def figures(self) -> dict[str, Any]:
        """What happened to the versions since the start: plain values only."""
        return {
            "live_for_s": now() - self._tenure.since,
            "faults": self._tenure.faults,
            "promotions": self.promotions,
            "refusals": self.refusals,
            "rollbacks": dict(self.rollbacks),
            "last_retreat": self.last_retreat,
            "swap_ms": dict(self.swap_ms),
        }

    # the control thread's side

    def stage(self, version: str) -> Verdict:
        """Load a candidate beside the live version and try it. Raises UnknownVersion; SwapRefused with the reason,
        and then the live and previous versions are what they were."""
        version = self.store.find(version)
        with self._staging:
            live = self._held.live
            if version == live.policy.version:
                raise SwapRefused(f"{version}: is live already")
            with self._moving:  # before loading: never two candidates in memory
                self._held, restarts = replace(self._held, staged=None), self._restarts
            try:
                staged = self._loader.prepare(version, live, self._warm(), self._tenure.pace_ms)
            except (SwapRefused, UnknownVersion) as error:
                self.refusals += 1
                raise SwapRefused(str(error)) from error
            except CANDIDATE_FAULTS as error:
                self.refusals += 1
                raise SwapRefused(f"{version}: {one_line(error)}") from error
            with self._moving:
                if restarts != self._restarts:  # it may share tensors with what crashed
                    raise SwapRefused(f"{version}: the engine was restarted meanwhile: stage again")
                self._held = replace(self._held, staged=staged)
            return staged.verdict

    def promote(self, version: str, request_id: str, by: str) -> Change:
        """Make the staged version (or the previous one, still warm) live. A repeated request id changes nothing.
        Raises SwapRefused, and then nothing has changed."""
        version = self.store.find(version)
        with self._moving:
            if self.store.recall(request_id):
                return self.store.promote(version, by, request_id)
            chosen = self._held.candidate(version)
            verdict = chosen.verdict.to_dict()
            started = now()
            change = self._write(version, lambda: self.store.promote(version, by, request_id, verdict))
            self._flip(Held(chosen, previous=self._held.live))
            self.promotions += 1
            self.swap_ms = {"load": chosen.verdict.load_ms, "verify": chosen.verdict.verify_ms}
            self.swap_ms["promote"] = (now() - started) * 1000
            return change

    def rollback(self, request_id: str, by: str) -> Change:
        """Return to the previous version; the one left stays warm. A repeated request id changes nothing.
        Raises UnknownVersion when there is none, SwapRefused when it can no longer be loaded (after a restart)."""
        with self._moving:
            if self.store.recall(request_id):
                return self.store.rollback(by, request_id)
            previous = self._way_back()
            change = self._write(previous.policy.version, lambda: self.store.rollback(by, request_id))
            self._flip(Held(previous, previous=self._held.live))
            self.rollbacks["command"] += 1
            return change

    def reload(self) -> str:
        """The engine crashed: load the store's last good version afresh, sharing nothing with what is in memory, and
        return its id. The others in memory are let go, and episodes go on with it. Raises BundleError when none can
        be served. While it loads, the version in memory is live; nobody should compute with it."""
        with self._moving:
            self._restarts += 1
            self._pins.clear()
            self._held = Held(self._held.live)
            self._flip(Held(self._loader.first()))
            self._pins.clear()
            return self.live.version

    def close(self) -> None:
        """Wait for an automatic rollback that is under way."""
        if self._retreat:
            self._retreat.join()

    # moving

    def _warm(self) -> dict[str, ServedPolicy]:
        return {policy.version: policy for policy in (*self._held.policies(), *self._pins.policies())}

    def _way_back(self) -> Loaded:
        if self._held.previous:
            return self._held.previous
        version = self.store.find("previous")
        try:
            return self._loader.prepare(version, None, self._warm())
        except CANDIDATE_FAULTS as error:
            raise SwapRefused(f"{version}: {one_line(error)}") from error

    def _write(self, version: str, write: Callable[[], Change]) -> Change:
        """Move the pointer on disk. When the disk fails, what it holds decides, because a restart will read that."""
        try:
            return write()
        except OSError as error:
            change = next(iter(self.store.history(1)), None)
            if change is None or change.version != version:
                raise SwapRefused(f"{version}: the pointer cannot be written: {one_line(error)}") from error
            log.warning("%s: the disk may not have kept the pointer: %s", version, one_line(error))
            return change

    def _flip(self, held: Held) -> None:
        tenure = Tenure(held.live, self.checks, self._tenure.record() if held.previous else None)
        started = now()
        self._held, self._tenure = held, tenure
        self.flip_ms = (now() - started) * 1000
        self._pins.sweep()

    def _give_up(self, tenure: Tenure, trip: Trip) -> None:
        if tenure.given_up:
            return
        tenure.given_up = True
        self._retreat = threading.Thread(target=self._go_back, args=(tenure.version, trip), name="retreat", daemon=True)
        self._retreat.start()

    def _go_back(self, version: str, trip: Trip) -> None:
        """The automatic rollback. Here memory moves first: a faulty version must not wait for a disk."""
        with self._moving:
            if self._held.live.policy.version != version:
                return
            try:
                previous = self._way_back()
            except HotpolicyError as error:
                log.error("version %s: %s, and there is no way back: %s", version, trip.reason, error)
                return
            self._flip(Held(previous))
            self._pins.release(version)
            self.rollbacks[trip.cause] += 1
            self.last_retreat = f"{version}: {trip.reason}"
            log.error("version %s: %s: %s is live again", version, trip.reason, self.live.version)
            verdict = {"cause": trip.cause, "reason": trip.reason, "of": version}
            try:
                self.store.rollback("automatic", f"retreat-{uuid.uuid4().hex}", forget=True, verdict=verdict)
            except (HotpolicyError, OSError) as error:
                log.error("the automatic rollback is not on disk, a restart would serve %s: %s", version, error)
