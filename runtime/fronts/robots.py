"""What a robot may say in our own dialect, and what it gets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from hotpolicy.runtime import envelope, pictures, wire
from hotpolicy.runtime.envelope import SESSION_LENGTH, Fields
from hotpolicy.runtime.errors import BadRequest, HotpolicyError
from hotpolicy.runtime.fronts.native import Native
from hotpolicy.runtime.ring import SUPPORTED
from hotpolicy.runtime.scheduler import Outcome
from hotpolicy.runtime.serving.desk import Desk
from hotpolicy.runtime.serving.loan import Loan, Loans
from hotpolicy.runtime.serving.router import Router
from hotpolicy.runtime.wire import Buffer, Message


class Robots:
    def __init__(self, router: Router, desk: Desk):
        self.router, self._desk = router, desk
        config = desk.config
        self._shared = SUPPORTED and config.endpoint.startswith("ipc://")
        self._loans = Loans(config.max_sessions, config.caps.message_bytes)
        self._native = Native(router, config.caps, desk.meter, self._reply_to, self._lend if self._shared else None)

    def handle(self, peer: bytes, frames: Sequence[Buffer]) -> None:
        self._native.handle(peer, frames)

    def tidy(self) -> None:
        """Let go of what clients lent that are gone. While no message is handled, now and then."""
        self._loans.sweep()

    def _reply_to(self, peer: bytes, message: Message) -> Message | None:
        id = message["id"]
        match message.get("kind"):
            case "infer":
                pictures.unpack(message, self._desk.policy.spec)
                request = envelope.to_request(message)
                loan = message.get(wire.RING)
                answer = partial(self._answer, peer, request.id, loan if isinstance(loan, Loan) else None)
                self._desk.admit(request, peer, answer)
                return None
            case "ping":
                return envelope.message("pong", id, state=self._desk.life.state)
            case "hello":
                return self._hello(id)
            case "stats":
                return envelope.message("stats", id, stats=self._desk.stats())
            case "cancel":
                self._desk.cancel((peer, _session(message)))
                return envelope.message("cancelled", id)
            case "bye":
                self._loans.forget((peer, _session(message)))
                self._desk.leave((peer, _session(message)))
                return None
        raise BadRequest("kind: expected infer, hello, ping, stats, cancel or bye on the robots' endpoint")

    def _lend(self, peer: bytes, message: Message) -> Loan:
        return self._loans.take((peer, _session(message)), message.get(wire.RING))

    def _answer(self, peer: bytes, id: int, loan: Loan | None, outcome: Outcome) -> None:
        """From any thread."""
        if loan and not isinstance(outcome, HotpolicyError):
            try:
                loan.check()
            except BadRequest as torn:  # the pixels changed while they were read: what came of them is no answer
                self._desk.meter.count(torn.code)
                outcome = torn
        if isinstance(outcome, HotpolicyError):
            self._native.send(peer, envelope.from_error(id, outcome))
        else:
            self._native.send(peer, envelope.from_chunk(outcome))

    def _hello(self, id: int) -> Message:
        policy = self._desk.policy
        return envelope.message(
            "hello",
            id,
            spec=policy.spec.to_dict(),
            horizon=policy.horizon,
            version=policy.version,
            digest=policy.digest,
            state=self._desk.life.state,
            shared_memory=self._shared,
            jpeg=pictures.READABLE,
        )


def _session(message: Message) -> str:
    return Fields(message, BadRequest).text("session", SESSION_LENGTH)
