"""The time for which one version is live: its faults, its pace, and what its watch says of it."""

from __future__ import annotations

from collections import deque
from statistics import median

import numpy as np

from hotpolicy.runtime.clock import now
from hotpolicy.runtime.versions.checks import Checks
from hotpolicy.runtime.versions.loader import Loaded
from hotpolicy.runtime.versions.watch import Record, Trip, Watch

PACES = 32  # newest batches of live that its pace is the median of


class Tenure:
    """Begins with a promotion, a rollback or the start. `fault` and `batch` are for one thread, the rest for any."""

    def __init__(self, live: Loaded, checks: Checks, before: Record | None = None):
        """`before`: of the version there is to go back to; None: there is none."""
        policy = live.policy
        self.version = policy.version
        self.since = now()
        self.faults = 0
        self.given_up = False
        self._max_faults, self._answers = checks.max_faults, live.answers
        self._watch = Watch(policy.version, policy.spec, checks.guard, before)
        self._paces: deque[float] = deque(maxlen=PACES)  # ms

    def fault(self) -> Trip | None:
        """The version answered with NaN or infinity, or failed. The reason to go back, if it did so too often."""
        self.faults += 1
        return Trip("faults", f"gave {self.faults} faulty answers") if self.faults == self._max_faults else None

    def batch(self, actions: np.ndarray, ms: float, waited_ms: float) -> Trip | None:
        """It answered (n, horizon, joints) finite actions in so long, of which it waited for a processor so long. The
        reason to go back, if there is one now."""
        self._paces.append(ms)
        return self._watch.note(actions, max(0.0, ms - waited_ms))

    def pace_ms(self) -> float:
        """What a batch takes on this machine now, with its robots asking, or 0: what the version took when it was
        tried itself, perhaps on an idle machine, says less."""
        paces = list(self._paces)
        return median(paces) if paces else 0.0

    def record(self) -> Record:
        """What the next version is measured by."""
        answers = self._answers
        return self._watch.record(None if answers.golden.is_blank else answers.actions)
