"""The one thread that computes: batches from the scheduler, policies from the slot, answers back to the socket thread.

A policy may take seconds; whoever admits, cancels or expires requests meanwhile waits for microseconds only.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from hotpolicy.runtime.clock import now
from hotpolicy.runtime.envelope import finite, one_line
from hotpolicy.runtime.epochs import Epochs, Guide
from hotpolicy.runtime.errors import BadRequest, Busy, Draining, EngineFault, Expired, HotpolicyError, Superseded
from hotpolicy.runtime.messages import ActionChunk, Boundary, Observation, RobotSpec
from hotpolicy.runtime.metrics import Meter, Sessions
from hotpolicy.runtime.run_queue import RunQueue
from hotpolicy.runtime.scheduler import Outcome, Scheduler, SessionKey, Ticket

EPOCHS = 4  # sessions whose last chunks are kept, as a multiple of those that may wait at once
logger = logging.getLogger(__name__)

IDLE_S = 0.5  # the longest this thread shows no progress when there is nothing to do
QUICK_S = 0.002  # batches that take no longer are not worth asking the kernel what the machine did meanwhile
RAISED = 10  # batches in a row in which the policy raised, whatever it was asked: the engine counts as crashed


class _Raised(EngineFault):
    """The policy raised instead of answering."""


class Policy(Protocol):
    """One policy version in memory, as the server sees it."""

    version: str
    digest: str
    spec: RobotSpec
    horizon: int
    guidable: bool  # whether `infer` takes guides=; one that does not say is not given any

    def check(self, observation: Observation) -> None: ...  # raises BadRequest naming the field

    def infer(
        self,
        observations: Sequence[Observation],
        noise: np.ndarray | None = None,
        guides: Sequence[Guide | None] | None = None,
    ) -> np.ndarray: ...


class Slot(Protocol):
    """The versions in memory, as the server sees them."""

    @property
    def live(self) -> Any: ...  # Policy

    @property
    def previous(self) -> Any: ...  # Policy or None

    @property
    def staged(self) -> Any: ...  # Policy or None

    # None of these may wait for a disk or a model, but for `reload`.

    def policy_for(self, session: str, boundary: Boundary, episode: int) -> Any: ...  # Policy

    def report_batch(self, version: str, actions: np.ndarray, ms: float, waited_ms: float) -> None:
        """This version answered a batch with these (n, horizon, joints) actions, all finite. It took so long, of
        which it waited for a processor so long."""

    def report_fault(self, version: str) -> None: ...  # this version failed to compute a batch

    def reload(self) -> str: ...  # load the live version afresh; raises HotpolicyError

    def forget(self, session: str) -> None: ...  # its episode holds no version any more

    def figures(self) -> dict[str, Any]: ...  # what happened to the versions: plain values


class Inference:
    """Owns the scheduler. `run` is the inference thread; `expire` is for the thread that `wake` wakes; the rest of
    its methods is for any thread."""

    def __init__(self, scheduler: Scheduler, slot: Slot, meter: Meter, wake: Callable[[], None]):
        """`wake`: another thread has admitted a request, so `expire` may have to be called sooner."""
        self.swap_stall_ms = {"last": 0.0, "longest": 0.0, "swaps": 0}
        self.progress = 0  # changes as the thread goes on
        self._sessions = Sessions()
        self._scheduler, self._slot, self._meter, self._wake = scheduler, slot, meter, wake
        self._epochs = Epochs(EPOCHS * scheduler.max_sessions)
        self._clerk = 0  # the thread that calls `expire`
        self._lock = threading.Lock()  # held for the scheduler's decisions, never while a policy or slot is called
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stopping = False
        self._computing = False
        self._batch: list[Ticket] = []  # taken out and not answered yet
        self._turn = 0  # threads that were abandoned: one that comes back late finds that it is not its turn
        self._raised = 0  # batches in a row
        self._served = ""  # the live version last seen
        self._ended = 0.0  # when this thread last finished a batch
        self._lasted = 0.0  # how long that took, s
        self._held_back = 0.0  # of the time since, what the scheduler waited for a fuller batch, s

    # What fronts and the socket thread call.

    def admit(self, ticket: Ticket) -> None:
        with self._lock:
            self._sessions.heard(ticket.session, ticket.arrived)
            full = self._scheduler.full_for(ticket)
            superseded = None if full else self._scheduler.admit(ticket)
        if full:
            self._answer(
                ticket,
                Busy(f"sessions: {self._scheduler.max_sessions} are waiting already, or half as many of this peer"),
            )
            return
        if superseded is not ticket:
            self._bell.put(None)
        if superseded:
            self._answer(superseded, Superseded("a newer observation of this session came first"))
        if threading.get_ident() != self._clerk:
            self._wake()

    def cancel(self, session: SessionKey) -> None:
        with self._lock:
            ticket = self._scheduler.cancel(session)
        if ticket:
            self._answer(ticket, Superseded("cancelled by its session"))

    def expire(self) -> float | None:
        """Answer what is too late; returns when to look again, on the monotonic clock."""
        self._clerk = threading.get_ident()
        with self._lock:
            next_expiry = self._scheduler.next_expiry()
            if next_expiry is None or next_expiry > now():
                return next_expiry
            late = self._scheduler.expire(now())
            next_expiry = self._scheduler.next_expiry()
        for ticket in late:
            self._answer(ticket, Expired(f"waited {1000 * (now() - ticket.arrived):.0f} ms, longer than its deadline"))
        return next_expiry

    def leave(self, session: SessionKey) -> None:
        """The robot says goodbye: nothing of it waits, no version is held for it, no chunk is kept."""
        self.cancel(session)
        self._epochs.drop(session)
        with self._lock:
            self._sessions.left(session)
        self._slot.forget(session[1])

    def waiting(self) -> int:
        return len(self._scheduler)

    def active_sessions(self) -> int:
        with self._lock:
            return self._sessions.active(now())

    def idle(self) -> bool:
        with self._lock:
            return not self._computing and not len(self._scheduler)

    def stop(self) -> None:
        """Let the thread end after the batch it computes; what still waits is answered `busy`."""
        self._stopping = True
        self._bell.put(None)

    def abandon(self, fault: EngineFault) -> None:
        """The thread in `run` is dead or stuck; what it may still compute is dropped. What waits and what it has taken
        is answered with `fault`. Another thread may call `warm_up` and `run` then."""
        with self._lock:
            self._turn += 1
            left = self._batch + self._scheduler.waiting()
            for ticket in left:
                self._scheduler.cancel(ticket.session)
            self._batch, self._computing, self._raised = [], False, 0
        for ticket in left:
            self._answer(ticket, fault)

    # What the inference thread does.

    def warm_up(self) -> None:
        """Compute once at real shapes, so that the first robot does not pay for it. Raises EngineFault."""
        policy = self._slot.live
        outcome = _compute(policy, [_blank(policy.spec)])[0]
        if isinstance(outcome, HotpolicyError):
            raise outcome
        self._served = policy.version

    def run(self) -> None:
        """Until `stop` or `abandon`. Raises when the engine cannot go on."""
        turn = self._turn
        with contextlib.closing(RunQueue()) as run_queue:
            while not self._stopping and self._turn == turn:
                self.progress += 1
                batch, policy, pause = self._next()
                if batch:
                    self._compute(batch, policy, turn, run_queue)
                else:
                    self._wait(pause)
        if self._turn != turn:
            return
        with self._lock:
            left = self._scheduler.waiting()
            for ticket in left:
                self._scheduler.cancel(ticket.session)
        for ticket in left:
            self._answer(ticket, Draining("the server is stopping"))

    def _wait(self, pause: float | None) -> None:
        began = now()
        with contextlib.suppress(queue.Empty):
            self._bell.get(timeout=IDLE_S if pause is None else pause)
        if pause:
            self._held_back += now() - began

    def _next(self) -> tuple[list[Ticket], Any, float | None]:
        """The next batch and its policy; or nothing, and how long to wait for the bell."""
        with self._lock:
            pause = self._scheduler.hold(now())
            waiting = self._scheduler.waiting()
        if not waiting or pause:
            return [], None, pause or None
        policies = self._policies(waiting)
        with self._lock:
            batch = self._scheduler.next_batch(now(), {ticket: policy.version for ticket, policy in policies.items()})
            self._batch, self._computing = batch, bool(batch)
        if not batch:
            return [], None, None if not self._scheduler else 0.001
        return batch, policies[batch[0]], None

    def _policies(self, waiting: list[Ticket]) -> dict[Ticket, Any]:
        policies = {}
        for ticket in waiting:
            request = ticket.request
            try:
                policies[ticket] = self._slot.policy_for(request.session, request.boundary, request.episode)
            except Exception as error:
                logger.exception("slot failed for session %s", request.session)
                with self._lock:
                    found = self._scheduler.cancel(ticket.session)
                if found:
                    self._answer(found, EngineFault(f"no policy for this session: {_name(error)}"))
        return policies

    def _compute(self, batch: list[Ticket], policy: Policy, turn: int, run_queue: RunQueue) -> None:
        looked = run_queue.look() if self._lasted > QUICK_S else None
        started = now()
        self._note_swap(started, min(ticket.arrived for ticket in batch))
        guides = self._guides(batch, policy)
        computed = _compute(policy, [ticket.request.observation for ticket in batch], guides)
        ended = now()
        if self._turn != turn:
            return
        self._meter.count("batches")
        if any(isinstance(actions, EngineFault) for actions in computed):  # said before anybody hears of it
            self._slot.report_fault(policy.version)  # enough of them, and the slot goes back to the version before
        outcomes = [
            _outcome(ticket, policy, actions, guide is not None, started, ended)
            for ticket, actions, guide in zip(batch, computed, guides or [None] * len(batch), strict=True)
        ]
        with self._lock:
            if self._turn != turn:
                return
            self._batch = []
        kept = getattr(policy, "guidable", False)
        for ticket, outcome in zip(batch, outcomes, strict=True):
            if kept and isinstance(outcome, ActionChunk):  # before it is answered: the robot may ask again at once
                self._epochs.keep(ticket.session, ticket.request, policy.version, outcome.actions)
            self._answer(ticket, outcome)
        good = [actions for actions in computed if isinstance(actions, np.ndarray)]
        if good:
            waited_ms = 0.0 if looked is None else run_queue.waited_ms(looked)
            self._slot.report_batch(policy.version, np.stack(good), 1000 * (ended - started), waited_ms)
        self._ended, self._lasted, self._held_back = ended, ended - started, 0.0
        self._computing = False
        self._note_failure(computed[0])

    def _note_failure(self, outcome: np.ndarray | EngineFault) -> None:
        """A policy that raises whatever it is asked, and the one before it too, has lost its device, say. Loading it
        anew once tells whether that is so; if its next warm-up succeeds, the requests are to blame."""
        self._raised = self._raised + 1 if isinstance(outcome, _Raised) else 0
        if self._raised == RAISED and not self._turn:
            raise EngineFault(f"{RAISED} batches in a row failed, the last one: {outcome}")

    def _guides(self, batch: list[Ticket], policy: Policy) -> list[Guide | None] | None:
        """What each of the batch carries on from; None when nobody has anything."""
        asking = [ticket for ticket in batch if ticket.request.rtc is not None]
        if not asking:
            return None
        guides: list[Guide | None] = [None] * len(batch)
        if getattr(policy, "guidable", False):
            guides = [self._epochs.guide(ticket.session, ticket.request, policy.version) for ticket in batch]
        guided = len(guides) - guides.count(None)
        self._meter.count("guided", guided)
        self._meter.count("unguided", len(asking) - guided)  # of those that asked for it
        return guides if guided else None

    def _answer(self, ticket: Ticket, outcome: Outcome) -> None:
        """What becomes of a request: called exactly once for each that was admitted."""
        if isinstance(outcome, HotpolicyError):
            self._meter.count(outcome.code)
        else:
            self._meter.count("answered")
            self._meter.observe(outcome.timings_ms.items())
        try:
            ticket.answer(outcome)
        except Exception:  # one front's fault; the others' robots go on
            logger.exception("an answer to session %s was lost", ticket.request.session)

    def _note_swap(self, started: float, arrived: float) -> None:
        """What a swap cost this thread: how long, before the first batch after it, work was there and none was done."""
        live = self._slot.live.version
        if live == self._served:
            return
        stall = 1000 * max(0.0, started - max(self._ended, arrived) - self._held_back)
        self.swap_stall_ms = {
            "last": stall,
            "longest": max(stall, self.swap_stall_ms["longest"]),
            "swaps": self.swap_stall_ms["swaps"] + 1,
        }
        self._served = live


def _outcome(
    ticket: Ticket, policy: Policy, actions: np.ndarray | EngineFault, guided: bool, started: float, ended: float
) -> Outcome:
    if isinstance(actions, EngineFault):
        return actions
    if ended >= ticket.expires:
        return Expired(f"computed in {1000 * (ended - started):.0f} ms, which ended after its deadline")
    return ActionChunk(
        actions=actions,
        rate_hz=policy.spec.rate_hz,
        observed_at=ticket.request.observed_at,
        request_id=ticket.request.id,
        version=policy.version,
        digest=policy.digest,
        timings_ms={
            "queue": 1000 * (started - ticket.arrived),
            "infer": 1000 * (ended - started),
            "total": 1000 * (ended - ticket.arrived),
        },
        guided=guided,
    )


def _compute(
    policy: Policy, observations: list[Observation], guides: list[Guide | None] | None = None
) -> Sequence[np.ndarray | EngineFault]:
    """One action array or one fault for each observation. A policy may fail in any way; the server goes on."""
    expected = (len(observations), policy.horizon, len(policy.spec.joints))
    try:
        actions = policy.infer(observations) if guides is None else policy.infer(observations, guides=guides)
    except Exception as error:
        logger.exception("policy %s failed", policy.version)
        return [_Raised(f"policy {policy.version}: {_name(error)}")] * len(observations)
    if not isinstance(actions, np.ndarray) or actions.shape != expected or actions.dtype != np.float32:
        got = f"{actions.dtype} {actions.shape}" if isinstance(actions, np.ndarray) else type(actions).__name__
        fault = EngineFault(f"policy {policy.version}: expected float32 actions {expected}, got {got}")
        return [fault] * len(observations)
    if finite(actions):
        return list(actions)
    fault = EngineFault(f"policy {policy.version}: computed actions that are not finite; they were not sent")
    return [row if finite(row) else fault for row in actions]


def _blank(spec: RobotSpec) -> Observation:
    images = {camera.name: np.zeros((camera.height, camera.width, 3), np.uint8) for camera in spec.cameras}
    state = np.array([(joint.low + joint.high) / 2 for joint in spec.joints], np.float32)
    return Observation(images=images, state=state, task="warm up")


def _name(error: Exception) -> str:
    """A BadRequest's own words; of any other error its type and first words."""
    return str(error) if isinstance(error, BadRequest) else one_line(f"{type(error).__name__}: {error}")
