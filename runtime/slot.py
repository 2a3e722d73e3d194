"""The versions in memory: live, staged, previous. A swap is a pointer flip; all the work is done before it.

Rule 1: the inference thread calls `policy_for` and `report_...` only, and none waits for a disk or a model.
Rule 2: the pointer on disk moves first, then the one in memory, so a crash restarts on what was promised.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from hotpolicy.runtime.checks import Checks, ServedPolicy, Verdict
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import HotpolicyError, SwapRefused, UnknownVersion
from hotpolicy.runtime.history import Change
from hotpolicy.runtime.loader import CANDIDATE_FAULTS, Load, Loaded, Loader, one_line
from hotpolicy.runtime.messages import Boundary
from hotpolicy.runtime.pins import Pins
from hotpolicy.runtime.store import Store
from hotpolicy.runtime.watch import Record, Trip, Watch

PACES = 32  # newest batches of live that its pace is the median of
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Held:
    """All the pointers; replaced in one step, so a reader never sees half a swap."""

    live: Loaded
    previous: Loaded | None = None
    staged: Loaded | None = None


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
        self._faults = 0  # of the live version, since it became live
        self._paces: deque[float] = deque(maxlen=PACES)  # ms, of live
        self._retreat: threading.Thread | None = None
        self._given_up = False  # on the live version
        self._restarts = 0  # of the engine
        self._held = Held(self._loader.first())
        self._watch = self._watcher(self._held, None)
        self._since = now()  # when live became live

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
        if version != self._held.live.policy.version:
            return
        self._faults += 1
        if self._faults == self.checks.max_faults:
            self._give_up(version, Trip("faults", f"gave {self._faults} faulty answers"))

    def report_batch(self, version: str, actions: np.ndarray, ms: float, waited_ms: float = 0.0) -> None:
        """`version` answered a batch with these (n, horizon, joints) finite actions in so long, of which it waited
        for a processor so long: that is not the version's. When the guard trips (see watch.py), the previous
        version is made live again, as for faults.

        Candidates are compared with how fast live is on this machine now, with its robots asking: what it took when
        it was tried itself, perhaps on an idle machine, says less."""
        watch = self._watch
        if version != self._held.live.policy.version or version != watch.version:
            return
        self._paces.append(ms)
        trip = watch.note(actions, max(0.0, ms - waited_ms))
        if trip:
            self._give_up(version, trip)

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
        return self._faults

    @property
    def retreats(self) -> int:
        """Automatic rollbacks."""
        return self.rollbacks.total() - self.rollbacks["command"]

    def figures(self) -> dict[str, Any]:
        """What happened to the versions since the start: plain values only."""
        return {
            "live_for_s": now() - self._since,
            "faults": self._faults,
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
                staged = self._loader.prepare(version, live, self._warm(), self._pace)
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
            chosen = self._candidate(version)
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

    def _pace(self) -> float:
        paces = list(self._paces)
        return median(paces) if paces else 0.0

    def _warm(self) -> dict[str, ServedPolicy]:
        held = self._held
        loaded = [part for part in (held.live, held.previous, held.staged) if part]
        policies = [part.root for part in loaded] + [part.policy for part in loaded] + self._pins.policies()
        return {policy.version: policy for policy in policies if policy}

    def _candidate(self, version: str) -> Loaded:
        held = self._held
        if held.staged and held.staged.policy.version == version:
            if held.staged.verdict.against != held.live.policy.version:
                raise SwapRefused(
                    f"{version}: was tried against {held.staged.verdict.against}, which is not live now: stage again"
                )
            return held.staged
        if held.previous and held.previous.policy.version == version:
            return held.previous
        raise SwapRefused(
            f"{version}: {'is live already' if held.live.policy.version == version else 'stage it first'}"
        )

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
        left, answers = self._watch, self._held.live.answers
        before = left.record(None if answers.golden.is_blank else answers.actions) if held.previous else None
        watch = self._watcher(held, before)
        started = now()
        self._held, self._watch = held, watch
        self._faults, self._given_up = 0, False
        self._paces.clear()
        self.flip_ms = (now() - started) * 1000
        self._since = started
        self._pins.sweep()

    def _watcher(self, held: Held, before: Record | None) -> Watch:
        policy = held.live.policy
        return Watch(policy.version, policy.spec, self.checks.guard, before)

    def _give_up(self, version: str, trip: Trip) -> None:
        if self._given_up:
            return
        self._given_up = True
        self._retreat = threading.Thread(target=self._go_back, args=(version, trip), name="retreat", daemon=True)
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
