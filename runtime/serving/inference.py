"""The one thread that computes: batches from the waiting room, policies from the slot, answers back to their fronts.

While it has nothing to compute it receives (see reception.py).
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import numpy as np

from hotpolicy.runtime.clock import now
from hotpolicy.runtime.contracts import Policy, Slot
from hotpolicy.runtime.errors import Draining, EngineFault, HotpolicyError
from hotpolicy.runtime.messages import ActionChunk
from hotpolicy.runtime.metrics import Meter
from hotpolicy.runtime.scheduler import SessionKey, Ticket
from hotpolicy.runtime.serving.batch import Raised, blank, compute, described, outcome
from hotpolicy.runtime.serving.epochs import Epochs, Guide
from hotpolicy.runtime.serving.reception import QUICK_S, Reception
from hotpolicy.runtime.serving.run_queue import OwnQueue, RunQueue
from hotpolicy.runtime.serving.stall import SwapStall
from hotpolicy.runtime.serving.waiting import WaitingRoom

__all__ = ["RAISED", "Inference", "Policy", "Slot"]

EPOCHS = 4  # sessions whose last chunks are kept, as a multiple of those that may wait at once
logger = logging.getLogger(__name__)

IDLE_S = 0.5  # the longest this thread shows no progress when there is nothing to do
RAISED = 10  # batches in a row in which the policy raised, whatever it was asked: the engine counts as crashed


class Inference:
    """`warm_up` and `run` are for the inference thread; the rest of its methods for any."""

    def __init__(self, room: WaitingRoom, slot: Slot, meter: Meter, reception: Reception, run_queue: RunQueue):
        """`run_queue` is followed by another thread."""
        self.progress = 0  # changes as the thread goes on
        self.stall = SwapStall()
        self._room, self._slot, self._meter, self._reception = room, slot, meter, reception
        self._run_queue = run_queue
        self._epochs = Epochs(EPOCHS * room.scheduler.max_sessions)
        self._stopping = False
        self._turn = 0  # threads that were abandoned: one that comes back late finds that it is not its turn
        self._raised = 0  # batches in a row
        self._lasted = float("inf")  # how long the last batch took, s
        self._version = ""  # and what computed it

    def leave(self, session: SessionKey) -> None:
        """The robot says goodbye: nothing of it waits, no version is held for it, no chunk is kept."""
        self._room.leave(session)
        self._epochs.drop(session)
        self._slot.forget(session[1])

    def stop(self) -> None:
        """Let the thread end after the batch it computes; what still waits is answered `busy`."""
        self._stopping = True
        self._reception.rouse()

    def abandon(self, fault: EngineFault) -> None:
        """The thread in `run` is dead or stuck; what it may still compute is dropped. What waits and what it has taken
        is answered with `fault`. Another thread may call `warm_up` and `run` then."""
        self._turn += 1
        self._raised = 0
        self._reception.retire()
        self._room.empty(fault)

    # What the inference thread does.

    def warm_up(self) -> None:
        """Compute once at real shapes, so that the first robot does not pay for it. Raises EngineFault."""
        policy = self._slot.live
        computed = compute(policy, [blank(policy.spec)])[0]
        if isinstance(computed, HotpolicyError):
            raise computed
        self.stall.warmed_up(policy.version)

    def run(self) -> None:
        """Until `stop` or `abandon`. Raises when the engine cannot go on."""
        turn = self._turn
        try:
            with contextlib.closing(OwnQueue()) as own:
                self.stall.computed_by(own.waited_ms)
                while not self._stopping and self._turn == turn:
                    self.progress += 1
                    batch, policy, pause = self._next()
                    if batch:
                        self._reception.begin(self._lasted <= QUICK_S and policy.version == self._version)
                        self._compute(batch, policy, turn)
                        if self._turn == turn:
                            self._reception.end()
                    else:
                        self._wait(pause)
        finally:
            if self._turn == turn:
                self._reception.retire()
        if self._turn == turn:
            self._room.empty(Draining("the server is stopping"))

    def _wait(self, pause: float | None) -> None:
        if pause is None:
            self._reception.attend(IDLE_S)
            return
        began = now()
        self._reception.attend(pause)
        self.stall.held_back(now() - began)
        self._room.expire()

    def _next(self) -> tuple[list[Ticket], Any, float | None]:
        """The next batch and its policy; or nothing, and how long to wait for more."""
        if not len(self._room):
            return [], None, None
        waiting, pause = self._room.order()
        if not waiting or pause:
            return [], None, pause or None
        policies = self._policies(waiting)
        batch = self._room.take({ticket: policy.version for ticket, policy in policies.items()})
        if not batch:
            return [], None, 0.001
        return batch, policies[batch[0]], None

    def _policies(self, waiting: list[Ticket]) -> dict[Ticket, Any]:
        policies = {}
        for ticket in waiting:
            request = ticket.request
            try:
                policies[ticket] = self._slot.policy_for(request.session, request.boundary, request.episode)
            except Exception as error:
                logger.exception("slot failed for session %s", request.session)
                fault = EngineFault(f"no policy for this session: {described(error)}")
                self._room.cancel(ticket.session, fault)
        return policies

    def _compute(self, batch: list[Ticket], policy: Policy, turn: int) -> None:
        looked = self._run_queue.look() if self._lasted > QUICK_S else None
        started = now()
        self.stall.begun(self._slot.live.version, started, min(ticket.arrived for ticket in batch))
        guides = self._guides(batch, policy)
        computed = compute(policy, [ticket.request.observation for ticket in batch], guides)
        ended = now()
        if self._turn != turn:
            return
        self._meter.count("batches")
        if any(isinstance(actions, EngineFault) for actions in computed):  # said before anybody hears of it
            self._slot.report_fault(policy.version)  # enough of them, and the slot goes back to the version before
        outcomes = [
            outcome(ticket, policy, actions, guide is not None, started, ended)
            for ticket, actions, guide in zip(batch, computed, guides or [None] * len(batch), strict=True)
        ]
        if not self._room.give_back(batch):
            return
        kept = getattr(policy, "guidable", False)
        for ticket, one in zip(batch, outcomes, strict=True):
            if kept and isinstance(one, ActionChunk):  # before it is answered: the robot may ask again at once
                self._epochs.keep(ticket.session, ticket.request, policy.version, one.actions)
            self._room.answer(ticket, one)
        good = [actions for actions in computed if isinstance(actions, np.ndarray)]
        if good:
            waited_ms = 0.0 if looked is None else self._run_queue.waited_ms(looked)
            actions = np.stack(good) if len(good) > 1 else good[0][None]
            self._slot.report_batch(policy.version, actions, 1000 * (ended - started), waited_ms)
        self.stall.finished(ended)
        self._lasted, self._version = ended - started, policy.version
        self._note_failure(computed[0])

    def _note_failure(self, computed: np.ndarray | EngineFault) -> None:
        """A policy that raises whatever it is asked, and the one before it too, has lost its device, say. Loading it
        anew once tells whether that is so; if its next warm-up succeeds, the requests are to blame."""
        self._raised = self._raised + 1 if isinstance(computed, Raised) else 0
        if self._raised == RAISED and not self._turn:
            raise EngineFault(f"{RAISED} batches in a row failed, the last one: {computed}")

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
