"""What a robot may say in our own dialect, and what it gets."""

from __future__ import annotations

from collections.abc import Sequence

from hotpolicy.runtime import envelope
from hotpolicy.runtime.desk import Desk
from hotpolicy.runtime.envelope import SESSION_LENGTH, Fields
from hotpolicy.runtime.errors import BadRequest, HotpolicyError
from hotpolicy.runtime.fronts.native import Native
from hotpolicy.runtime.router import Router
from hotpolicy.runtime.scheduler import Outcome
from hotpolicy.runtime.wire import Buffer, Message


class Robots:
    def __init__(self, router: Router, desk: Desk):
        self.router, self._desk = router, desk
        self._native = Native(router, desk.config.caps, desk.meter, self._reply_to)

    def handle(self, peer: bytes, frames: Sequence[Buffer]) -> None:
        self._native.handle(peer, frames)

    def _reply_to(self, peer: bytes, message: Message) -> Message | None:
        id = message["id"]
        match message.get("kind"):
            case "infer":
                request = envelope.to_request(message)
                self._desk.admit(request, peer, lambda outcome: self._answer(peer, request.id, outcome))
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
                self._desk.leave((peer, _session(message)))
                return None
        raise BadRequest("kind: expected infer, hello, ping, stats, cancel or bye on the robots' endpoint")

    def _answer(self, peer: bytes, id: int, outcome: Outcome) -> None:
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
        )


def _session(message: Message) -> str:
    return Fields(message, BadRequest).text("session", SESSION_LENGTH)
