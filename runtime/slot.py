"""The versions in memory: live, staged, previous. A swap is a pointer flip; all the work is done before it.

Rule 1: the inference thread calls `policy_for` and `report_...` only, and none waits for a disk or a model.
Rule 2: the pointer on disk moves first, then the one in memory, so a crash restarts on what was promised.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

from hotpolicy.runtime.checks import Checks, ServedPolicy, Verdict
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import HotpolicyError, SwapRefused, UnknownVersion
from hotpolicy.runtime.history import Change
from hotpolicy.runtime.loader import CANDIDATE_FAULTS, Load, Loaded, Loader, one_line
from hotpolicy.runtime.messages import Boundary
from hotpolicy.runtime.pins import Pins
from hotpolicy.runtime.store import Store

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
        self.retreats = 0  # automatic rollbacks
        self._loader = Loader(store, load, self.checks)
        self._staging = threading.Lock()  # one candidate at a time
        self._moving = threading.Lock()  # one promotion or rollback at a time; never held while a candidate loads
        self._pins = Pins()
        self._faults = 0  # of the live version, since it became live
        self._paces: deque[float] = deque(maxlen=PACES)  # ms, of live
        self._retreat: threading.Thread | None = None
        self._held = Held(self._loader.first())

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
        """`version` answered with NaN or infinity. After `checks.max_faults` since its promotion, the previous
        version is made live again by a side thread, and this one is not kept as a way back."""
        if version != self._held.live.policy.version:
            return
        self._faults += 1
        if self._faults == self.checks.max_faults:
            self._retreat = threading.Thread(target=self._go_back, args=(version,), name="retreat", daemon=True)
            self._retreat.start()

    def report_latency(self, version: str, ms: float) -> None:
        """`version` took so long for a batch. Candidates are compared with how fast live is on this machine now,
        with its robots asking: what it took when it was tried itself, perhaps on an idle machine, says less."""
        if version == self._held.live.policy.version:
            self._paces.append(ms)

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

    # the control thread's side

    def stage(self, version: str) -> Verdict:
        """Load a candidate beside the live version and try it. Raises UnknownVersion; SwapRefused with the reason,
        and then the live and previous versions are what they were."""
        version = self.store.find(version)
        with self._staging:
            live = self._held.live
            if version == live.policy.version:
                raise SwapRefused(f"{version}: is live already")
            self._set_staged(None)  # before loading: never two candidates in memory
            try:
                staged = self._loader.prepare(version, live, self._warm(), self._pace)
            except (SwapRefused, UnknownVersion) as error:
                raise SwapRefused(str(error)) from error
            except CANDIDATE_FAULTS as error:
                raise SwapRefused(f"{version}: {one_line(error)}") from error
            self._set_staged(staged)
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
            change = self._write(version, lambda: self.store.promote(version, by, request_id, verdict))
            self._flip(Held(chosen, previous=self._held.live))
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
            return change

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
        started = now()
        self._held = held
        self._faults = 0
        self._paces.clear()
        self.flip_ms = (now() - started) * 1000
        self._pins.sweep()

    def _set_staged(self, staged: Loaded | None) -> None:
        with self._moving:
            self._held = replace(self._held, staged=staged)

    def _go_back(self, version: str) -> None:
        """The automatic rollback. Here memory moves first: a faulty version must not wait for a disk."""
        with self._moving:
            if self._held.live.policy.version != version:
                return
            try:
                previous = self._way_back()
            except HotpolicyError as error:
                log.error("version %s is faulty and there is no way back: %s", version, error)
                return
            self._flip(Held(previous))
            self._pins.release(version)
            self.retreats += 1
            log.error(
                "version %s gave %d faulty answers: %s is live again",
                version,
                self.checks.max_faults,
                self.live.version,
            )
            try:
                self.store.rollback("automatic", f"retreat-{uuid.uuid4().hex}", forget=True)
            except (HotpolicyError, OSError) as error:
                log.error("the automatic rollback is not on disk, a restart would serve %s: %s", version, error)
