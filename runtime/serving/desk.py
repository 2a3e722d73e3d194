"""What every front may do with the server, whatever its dialect, its socket or its threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hotpolicy.runtime.clock import now
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.errors import Draining, ServerFailed
from hotpolicy.runtime.messages import InferRequest
from hotpolicy.runtime.metrics import Meter
from hotpolicy.runtime.scheduler import Answer, SessionKey, Ticket
from hotpolicy.runtime.serving.inference import Inference, Policy, Slot
from hotpolicy.runtime.serving.life import Life
from hotpolicy.runtime.serving.waiting import WaitingRoom


class Desk:
    """Safe to use from any thread. Nothing here waits for a model or a disk."""

    def __init__(
        self,
        config: ServeConfig,
        slot: Slot,
        room: WaitingRoom,
        inference: Inference,
        meter: Meter,
        life: Life,
        stats: Callable[[], dict[str, Any]],
    ):
        self.config, self.meter, self.life, self.stats = config, meter, life, stats
        self._slot, self._room, self._inference = slot, room, inference

    @property
    def policy(self) -> Policy:
        """The live version: what a greeting tells of."""
        live: Policy = self._slot.live
        return live

    def admit(self, request: InferRequest, peer: bytes, answer: Answer) -> None:
        """Let a request wait. `answer` is called once, by any thread, with the chunk or the error that came of it.
        Raises BadRequest, Busy, EngineFault, and then `answer` is never called. `peer` and the request's session
        together name one robot, and its name alone holds the version of its episode: a front makes both its own."""
        arrived = now()
        self.meter.count("asked")
        self._slot.live.check(request.observation)
        if self.life.state == "draining":
            raise Draining("the server is draining")
        if self.life.state == "failed":
            raise ServerFailed(self.life.failure)
        budget_ms = min(request.deadline_ms, self.config.longest_deadline_ms)
        self._room.admit(Ticket(request, peer, arrived, arrived + budget_ms / 1000, answer))

    def cancel(self, session: SessionKey) -> None:
        """What waits of this session is answered `superseded`."""
        self._room.cancel(session)

    def leave(self, session: SessionKey) -> None:
        """The robot says goodbye: nothing of it waits, no version is held for it."""
        self._inference.leave(session)
