"""The robot's side of the socket. Every call has a deadline; no torch here."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zmq

from hotpolicy.runtime import envelope, pictures, wire
from hotpolicy.runtime.clock import Deadline, now
from hotpolicy.runtime.connection import Connection
from hotpolicy.runtime.control_client import ControlClient
from hotpolicy.runtime.envelope import ServerInfo
from hotpolicy.runtime.errors import BadReply, BadRequest, ConfigError, HotpolicyError, LockedOut, ServerLost
from hotpolicy.runtime.keys import ClientKeys
from hotpolicy.runtime.lending import GREETING, Lending, plain
from hotpolicy.runtime.messages import ActionChunk, Boundary, InferRequest, Observation, Rtc
from hotpolicy.runtime.ring import SUPPORTED
from hotpolicy.runtime.wire import Message

__all__ = ["ControlClient", "PolicyClient", "ServerInfo"]


@dataclass(slots=True)
class _Asked:
    """A request whose answer is awaited."""

    id: int
    deadline: Deadline
    server: int
    lent: InferRequest | None = None  # its pictures are in the ring; kept in case the server cannot read them there
    again: bool = False  # they were sent as frames since


class PolicyClient(Connection):
    """Asks a policy server for action chunks. One per robot; for one thread at a time.

    `infer` waits for the answer. `ask` and `poll` let a control loop go on meanwhile. Images and state are sent
    without a copy: leave an observation's arrays unchanged until it is answered.
    """

    def __init__(
        self,
        endpoint: str | Sequence[str],
        session: str | None = None,
        timeout_s: float = 1.0,
        boundary: Boundary = "chunk",
        *,
        shared_memory: bool | None = None,
        jpeg: int | Mapping[str, int] | None = None,
        keys: ClientKeys | None = None,
    ):
        """`endpoint`: the server's; of several, the first is preferred, and the next one is asked while it gives no
        answer or is going. `timeout_s`: the deadline of a call that names none, s. `boundary`: when this robot may
        change version. A change of server may be one of version, whatever the boundary: the chunk names it.
        `shared_memory`: put pictures where a server on an ipc endpoint reads them in place, once it has said that it
        does (see ring.py); None: where that can be. `jpeg`: the quality, 1 to 100, that pictures are sent with, of all
        cameras or by name; None: as they are. `keys`: for servers on other computers."""
        if not timeout_s > 0:
            raise ConfigError(f"timeout_s: expected more than 0, got {timeout_s}")
        self._jpeg = pictures.check_quality(jpeg)
        super().__init__(endpoint, keys)
        self.session = session or uuid.uuid4().hex
        self.timeout_s = timeout_s
        self.boundary = boundary
        self.episode = 0
        self._asked: _Asked | None = None
        self._lending = self._lender(shared_memory) if shared_memory is not False else None

    def close(self) -> None:
        """Say goodbye, if a server is there to hear it, so that it holds nothing for this session."""
        self._say_goodbye(self._failover.active)
        self._shut(100)
        if self._lending:
            self._lending.close()

    @property
    def lends(self) -> bool:
        """Whether the next pictures go through shared memory."""
        return self._lending is not None and bool(self._lending.allowed)

    def image_buffers(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
        """Memory for the pictures of the next observation, uint8, by camera, for whoever captures or decodes them to
        write into. Where `lends`, the server reads them right there, and nothing copies them; elsewhere it is memory as
        any. Theirs to write until the request that carries these very arrays, all of them, is sent; the server's until
        it is answered. A second call takes back what was not sent. `shapes`: (height, width, 3). Raises ConfigError."""
        for camera, shape in shapes.items():
            if len(shape) != 3 or any(type(size) is not int or not 0 < size <= 1 << 16 for size in shape):
                raise ConfigError(f"shapes.{camera}: expected height, width and colours, got {shape!r}")
        return self._lending.reserve(shapes) if self._lending else plain(shapes)

    def hello(self) -> ServerInfo:
        """What the server serves. Raises ServerLost (LockedOut, where it does not let us in), BadReply."""
        return envelope.to_info(self._ask("hello", Deadline.after(self.timeout_s)))

    def ping(self) -> str:
        """The server's state: starting, warming, ready, draining or failed. Raises ServerLost."""
        return envelope.Fields(self._ask("ping", Deadline.after(self.timeout_s)), BadReply).text("state", 16)

    def stats(self) -> dict[str, Any]:
        """The server's counts, latencies and versions. Raises ServerLost."""
        return envelope.Fields(self._ask("stats", Deadline.after(self.timeout_s)), BadReply).mapping("stats")

    def wait_ready(self, timeout_s: float) -> ServerInfo:
        """Return once the server is ready, even if it is still to be started. Raises ServerLost."""
        deadline = Deadline.after(timeout_s)
        while not deadline.passed():
            try:
                info = envelope.to_info(self._ask("hello", Deadline.after(min(1.0, deadline.remaining()))))
            except LockedOut:
                raise
            except ServerLost:
                continue
            if info.state == "ready":
                return info
            self._leave(self._failover.active, f"is {info.state}")
            time.sleep(min(0.02, deadline.remaining()))
        raise ServerLost(f"{self.endpoint}: not ready within {timeout_s:g} s")

    def new_episode(self) -> None:
        """Begin another episode: what was asked in the old one is no longer awaited."""
        self.episode += 1
        self._asked = None

    def infer(self, observation: Observation, deadline_ms: float | None = None, rtc: Rtc | None = None) -> ActionChunk:
        """The actions for this observation. Supersedes what `ask` still awaits. With `rtc` they carry on from the chunk
        being executed where the server still has it; the chunk's `guided` says whether they do.

        Raises BadRequest (fix the call), ServerLost, Expired, Busy, EngineFault (hold, ask again) within the deadline.
        """
        request, deadline = self._request(observation, deadline_ms, rtc)
        self._asked = None
        self._look_back()
        asked = self._put(request, deadline, deadline)
        if (reply := self._answer(asked, deadline)) is None:
            raise self._lost(asked.server, "no answer before the deadline")
        return envelope.to_chunk(reply)

    def ask(self, observation: Observation, deadline_ms: float | None = None, rtc: Rtc | None = None) -> int:
        """Send an observation and return its id at once; `poll` brings the answer.

        Raises BadRequest, or ServerLost when there is no server to send to: it does not wait for one.
        """
        request, deadline = self._request(observation, deadline_ms, rtc)
        self._asked = None
        self._look_back()
        self._asked = self._put(request, deadline, Deadline.after(0.0))
        return request.id

    def poll(self, timeout: float = 0.0) -> ActionChunk | None:
        """The answer to the last `ask`, or None when it is not here after `timeout` s, or when nothing was asked.

        Raises what the server answered instead (Expired, Superseded, Busy, EngineFault, BadRequest), or ServerLost once
        the deadline of that `ask` has passed. Either way nothing is awaited any more: ask again.
        """
        asked = self._asked
        if asked is None:
            return None
        try:
            reply = self._answer(asked, Deadline.after(min(timeout, asked.deadline.remaining())))
        except HotpolicyError:
            self._asked = None
            raise
        if reply is None and not asked.deadline.passed():
            return None
        self._asked = None
        if reply is None:
            raise self._lost(asked.server, "no answer before the deadline")
        return envelope.to_chunk(reply)

    def _say_goodbye(self, server: int) -> None:
        goodbye = envelope.message("bye", next(self._ids), session=self.session)
        with contextlib.suppress(zmq.ZMQError):
            self._send(server, wire.encode(goodbye))

    def _put(self, request: InferRequest, deadline: Deadline, until: Deadline) -> _Asked:
        """Post a request before `until`; its pictures go into the ring once the server has said that it reads one."""
        message, lending = self._message(request), self._lending
        if lending is None:
            return _Asked(request.id, deadline, self._post(message, until))
        if lending.about(self.endpoint):
            self._post(envelope.message("hello", GREETING), until)
            lending.asked = True
        lent = lending.lend(message)
        try:
            return _Asked(request.id, deadline, self._post(message, until), request if lent else None)
        except ServerLost:
            lending.answered(request.id)
            raise

    def _answer(self, asked: _Asked, until: Deadline) -> Message | None:
        """The reply, or None when it is not here in time. What was lent and refused is sent once more, as frames: a
        server that takes those cannot read the ring (it runs in another container, say), and is lent no more."""
        while True:
            try:
                return self._await(asked.id, until, asked.server)
            except BadRequest:
                if self._lending is None or asked.lent is None:
                    raise
                self._lending.allowed = asked.again  # refused again: it is the observation that is wrong
                if asked.again:
                    raise
                asked.again = True
                asked.server = self._post(self._message(asked.lent), until)

    def _lender(self, wanted: bool | None) -> Lending | None:
        """Raises ConfigError where it is wanted and cannot be."""
        local = any(endpoint.startswith("ipc://") for endpoint in self.endpoints)
        if wanted and not (local and SUPPORTED):
            Connection.close(self)
            expected = "an ipc endpoint" if SUPPORTED else "Linux, whose memfd it needs"
            raise ConfigError(f"shared_memory: expected {expected}, got {self.endpoint!r}")
        return Lending(self.endpoint) if local and SUPPORTED else None

    def _message(self, request: InferRequest) -> Message:
        message = envelope.from_request(request)
        if self._jpeg:
            message["images"] = pictures.pack(message["images"], self._jpeg)
        return message

    def _lost(self, server: int, what: str, kind: type[ServerLost] = ServerLost) -> ServerLost:
        if self._lending:
            self._lending.lost()
        return super()._lost(server, what, kind)

    def _receive(self, deadline: Deadline, server: int) -> Message | None:
        while True:
            reply = super()._receive(deadline, server)
            if not reply or self._lending is None or not self._lending.heard(reply):
                return reply

    def _request(
        self, observation: Observation, deadline_ms: float | None, rtc: Rtc | None
    ) -> tuple[InferRequest, Deadline]:
        budget_ms = 1000 * self.timeout_s if deadline_ms is None else deadline_ms
        if not budget_ms > 0:
            raise BadRequest(f"deadline_ms: expected more than 0, got {deadline_ms}")
        request = InferRequest(
            id=next(self._ids),
            session=self.session,
            observation=observation,
            observed_at=now(),
            deadline_ms=budget_ms,
            boundary=self.boundary,
            episode=self.episode,
            rtc=rtc,
        )
        return request, Deadline.after(budget_ms / 1000)
