"""hotpolicy's own dialect, for robots and operators alike: what each message gets; no exception ever leaves here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

from hotpolicy.runtime import envelope, wire
from hotpolicy.runtime.envelope import Fields
from hotpolicy.runtime.errors import BadRequest, EngineFault, HotpolicyError
from hotpolicy.runtime.metrics import Meter
from hotpolicy.runtime.serving.router import Router
from hotpolicy.runtime.wire import Buffer, Caps, Message

logger = logging.getLogger(__name__)

KIND_LENGTH = 32  # characters

Handler = Callable[[bytes, Message], Message | None]  # the reply, or None when it comes later or never
Lender = Callable[[bytes, Message], wire.Loan]


class Native:
    """Frames to messages and back. `handler` and `lender` run in whoever receives and may raise HotpolicyError."""

    def __init__(self, router: Router, caps: Caps, meter: Meter, handler: Handler, lender: Lender | None = None):
        """`lender`: the slot of a ring that a peer's message refers to; None: nobody may lend."""
        self.router = router
        self._caps, self._meter, self._handler, self._lender = caps, meter, handler, lender

    def handle(self, peer: bytes, frames: Sequence[Buffer]) -> None:
        """Garbage is answered where an id can be read in it, and counted always."""
        fault: HotpolicyError
        try:
            message = wire.decode(frames, self._caps, lender=self._lender and partial(self._lender, peer))
            fields = Fields(message, BadRequest)
            fields.integer("id")
            fields.text("kind", KIND_LENGTH)  # an array would compare as one
            if reply := self._handler(peer, message):
                self.send(peer, reply)
            return
        except HotpolicyError as error:
            fault = error
        except Exception as error:  # a fault of ours must not silence the socket for everybody
            logger.exception("a message could not be handled")
            fault = EngineFault(f"server: {type(error).__name__}: {error}")
        self._meter.count(fault.code)
        id = wire.peek_id(frames, self._caps)
        if id is not None:
            self.send(peer, envelope.from_error(id, fault))

    def send(self, peer: bytes, reply: Message) -> None:
        """From any thread."""
        self.router.send(peer, _encode(reply))


def _encode(reply: Message) -> list[Buffer]:
    try:
        return wire.encode(reply)
    except BadRequest as error:  # an answer of ours that has no place on the wire
        logger.error("a %s reply could not be encoded: %s", reply["kind"], error)
        return wire.encode(envelope.from_error(reply["id"], HotpolicyError(f"reply: {error}")))
