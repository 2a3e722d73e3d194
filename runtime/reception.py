"""What each message to a server gets: checked, admitted, answered or refused, and never an exception out of here.

Called by the socket thread only, so nothing here may wait for a model or a disk.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Sequence
from typing import Any

from hotpolicy.runtime import envelope, wire
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.envelope import SESSION_LENGTH, Fields
from hotpolicy.runtime.errors import BadRequest, Busy, EngineFault, HotpolicyError
from hotpolicy.runtime.inference import Inference, Slot
from hotpolicy.runtime.life import Life
from hotpolicy.runtime.metrics import Meter
from hotpolicy.runtime.scheduler import Ticket
from hotpolicy.runtime.wire import Buffer, Message

logger = logging.getLogger(__name__)

COMMANDS = 64  # operators' commands that may wait
VERBS = ("stage", "swap", "promote", "rollback", "versions", "status", "history")

Command = tuple[bytes, Message]  # who sent it, what
Handler = Callable[[bytes, Message], Message | None]  # the reply, or None when it comes later or never


class Reception:
    def __init__(
        self,
        config: ServeConfig,
        slot: Slot,
        inference: Inference,
        meter: Meter,
        life: Life,
        stats: Callable[[], dict[str, Any]],
    ):
        self.commands: queue.Queue[Command | None] = queue.Queue(COMMANDS)  # for the control thread
        self._config, self._slot, self._inference = config, slot, inference
        self._meter, self._life, self._stats = meter, life, stats

    def reply_to(self, peer: bytes, frames: Sequence[Buffer], handler: Handler) -> Message | None:
        """What to answer now. Garbage is answered where an id can be read in it, and counted always."""
        fault: HotpolicyError
        try:
            message = wire.decode(frames, self._config.caps)
            Fields(message, BadRequest).integer("id")
            return handler(peer, message)
        except HotpolicyError as error:
            fault = error
        except Exception as error:  # a fault of ours must not silence the socket for everybody
            logger.exception("a message could not be handled")
            fault = EngineFault(f"server: {type(error).__name__}: {error}")
        self._meter.count(fault.code)
        id = wire.peek_id(frames, self._config.caps)
        return envelope.from_error(id, fault) if id is not None else None

    def robot(self, peer: bytes, message: Message) -> Message | None:
        """Handles a message on the robots' endpoint. Raises HotpolicyError."""
        id = message["id"]
        match message.get("kind"):
            case "infer":
                self._admit(peer, message)
                return None
            case "ping":
                return envelope.message("pong", id, state=self._life.state)
            case "hello":
                return self._hello(id)
            case "stats":
                return envelope.message("stats", id, stats=self._stats())
            case "cancel":
                self._inference.cancel((peer, _session(message)))
                return envelope.message("cancelled", id)
            case "bye":
                self._inference.leave((peer, _session(message)))
                return None
        raise BadRequest("kind: expected infer, hello, ping, stats, cancel or bye on the robots' endpoint")

    def operator(self, peer: bytes, message: Message) -> Message | None:
        """Handles a message on the control endpoint. Raises HotpolicyError."""
        id, kind = message["id"], message.get("kind")
        if kind == "ping":
            return envelope.message("pong", id, state=self._life.state)
        if kind == "shutdown":
            self._life.ended.set()
            return envelope.message("control", id, result={"state": "draining"})
        if kind not in VERBS:
            raise BadRequest(f"kind: expected one of ping, shutdown, {', '.join(VERBS)} on the control endpoint")
        try:
            self.commands.put_nowait((peer, message))
        except queue.Full as error:
            raise Busy(f"control: {COMMANDS} commands are waiting already") from error
        return None

    def _admit(self, peer: bytes, message: Message) -> None:
        arrived = now()
        self._meter.count("asked")
        request = envelope.to_request(message)
        self._slot.live.check(request.observation)
        if self._life.state == "draining":
            raise Busy("the server is draining")
        if self._life.state == "failed":
            raise EngineFault(self._life.failure)
        budget_ms = min(request.deadline_ms, self._config.longest_deadline_ms)
        self._inference.admit(Ticket(request, peer, arrived, arrived + budget_ms / 1000))

    def _hello(self, id: int) -> Message:
        policy = self._slot.live
        return envelope.message(
            "hello",
            id,
            spec=policy.spec.to_dict(),
            horizon=policy.horizon,
            version=policy.version,
            digest=policy.digest,
            state=self._life.state,
        )


def _session(message: Message) -> str:
    return Fields(message, BadRequest).text("session", SESSION_LENGTH)
