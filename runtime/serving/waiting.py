"""Requests from when they are admitted until they are answered: the scheduler, the lock it needs, and the answers.

A policy may take seconds; whoever admits, cancels or expires requests meanwhile waits for microseconds only.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import Busy, Expired, HotpolicyError, Superseded
from hotpolicy.runtime.metrics import Meter, Sessions
from hotpolicy.runtime.scheduler import Outcome, Scheduler, SessionKey, Ticket

logger = logging.getLogger(__name__)


class WaitingRoom:
    """For any thread; `order`, `take` and `give_back` for the one that computes."""

    def __init__(self, scheduler: Scheduler, meter: Meter, wake: Callable[[], None]):
        """`wake`: a request was admitted, so there is something to compute, and to expire."""
        self.scheduler = scheduler
        self._meter, self._wake = meter, wake
        self._sessions = Sessions()
        self._lock = threading.Lock()  # held for the scheduler's decisions, never while a policy or slot is called
        self._taken: list[Ticket] = []  # to be computed, and not answered yet

    def __len__(self) -> int:
        return len(self.scheduler)

    def admit(self, ticket: Ticket) -> None:
        with self._lock:
            self._sessions.heard(ticket.session, ticket.arrived)
            full = self.scheduler.full_for(ticket)
            superseded = None if full else self.scheduler.admit(ticket)
        if full:
            most = self.scheduler.max_sessions
            self.answer(ticket, Busy(f"sessions: {most} are waiting already, or half as many of this peer"))
            return
        if superseded:
            self.answer(superseded, Superseded("a newer observation of this session came first"))
        self._wake()

    def cancel(self, session: SessionKey, why: HotpolicyError | None = None) -> None:
        """What waits of this session is answered with `why`."""
        with self._lock:
            ticket = self.scheduler.cancel(session)
        if ticket:
            self.answer(ticket, why or Superseded("cancelled by its session"))

    def leave(self, session: SessionKey) -> None:
        """The robot says goodbye."""
        self.cancel(session)
        with self._lock:
            self._sessions.left(session)

    def expire(self) -> float | None:
        """Answer what is too late; returns when to look again, on the monotonic clock."""
        with self._lock:
            next_expiry = self.scheduler.next_expiry()
            if next_expiry is None or next_expiry > now():
                return next_expiry
            late = self.scheduler.expire(now())
            next_expiry = self.scheduler.next_expiry()
        for ticket in late:
            self.answer(ticket, Expired(f"waited {1000 * (now() - ticket.arrived):.0f} ms, longer than its deadline"))
        return next_expiry

    def order(self) -> tuple[list[Ticket], float]:
        """Who waits, the most urgent first, and how long to hold them back for a fuller batch, s."""
        with self._lock:
            pause = self.scheduler.hold(now())
            return self.scheduler.waiting(), pause

    def take(self, versions: Mapping[Ticket, str]) -> list[Ticket]:
        """The batch to compute now, which may be empty. `versions`: of each ticket that may be in it."""
        with self._lock:
            self._taken = self.scheduler.next_batch(now(), versions)
            return self._taken

    def give_back(self, batch: list[Ticket]) -> bool:
        """Whether the batch taken is still to be answered by whoever took it; it is then nobody else's any more."""
        with self._lock:
            if self._taken is not batch:
                return False
            self._taken = []
            return True

    def empty(self, fault: HotpolicyError) -> None:
        """Answer everybody with this: who waits, and who was taken."""
        with self._lock:
            left = self._taken + self.scheduler.waiting()
            for ticket in left:
                self.scheduler.cancel(ticket.session)
            self._taken = []
        for ticket in left:
            self.answer(ticket, fault)

    def idle(self) -> bool:
        with self._lock:
            return not self._taken and not len(self.scheduler)

    def active_sessions(self) -> int:
        with self._lock:
            return self._sessions.active(now())

    def answer(self, ticket: Ticket, outcome: Outcome) -> None:
        """What becomes of a request: called exactly once for each that was admitted."""
        if isinstance(outcome, HotpolicyError):
            self._meter.count(outcome.code)
        else:
            self._meter.answered(outcome.timings_ms.items())
        try:
            ticket.answer(outcome)
        except Exception:  # one front's fault; the others' robots go on
            logger.exception("an answer to session %s was lost", ticket.request.session)
