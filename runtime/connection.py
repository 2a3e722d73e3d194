"""A client's sockets, one for each server it may ask. Every call has a deadline, whatever the servers do.

A request has an id that rises, over all servers. A reply with another id than the one awaited is dropped and counted,
so a late or reordered answer, or another server's, is never taken for a newer one. When the server dies, freezes or
restarts, a call costs at most its deadline, and the connection comes back by itself. Where there are several servers,
the next call goes to another one (see failover.py).
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import zmq

from hotpolicy.runtime import envelope, wire
from hotpolicy.runtime.clock import Deadline, now
from hotpolicy.runtime.dealer import BACKLOG, Dealer
from hotpolicy.runtime.errors import BadReply, ConfigError, Draining, LockedOut, ServerFailed, ServerLost
from hotpolicy.runtime.failover import Failover
from hotpolicy.runtime.keys import ClientKeys
from hotpolicy.runtime.wire import Buffer, Message

log = logging.getLogger(__name__)

C = TypeVar("C", bound="Connection")
PATIENCE_S = 0.2  # for the active server to connect, before another is asked; at most half of the deadline
LOOK_S = 1.0  # for a preferred server to say that it is ready


@dataclass(slots=True)
class _Look:
    """A ping to a server that is preferred to the one asked."""

    server: int
    id: int
    deadline: Deadline


class Connection:
    """DEALER sockets that keep deadlines. For one thread at a time."""

    def __init__(self, endpoint: str | Sequence[str], keys: ClientKeys | None = None):
        """`endpoint`: the server's; of several, the first is preferred. `keys`: for servers on other computers; all
        have the same key. Raises ConfigError when an endpoint is none. A server that is not there yet is no error."""
        endpoints = (endpoint,) if isinstance(endpoint, str) else tuple(endpoint)
        if not endpoints or len(set(endpoints)) < len(endpoints):
            raise ConfigError(f"endpoint: expected one or several, each once, got {endpoint!r}")
        self.endpoints = endpoints
        self.dropped: Counter[str] = Counter()  # replies not used, by reason: "late", "garbage"
        self._ids = itertools.count(1)
        self._failover = Failover(len(endpoints))
        self._look: _Look | None = None
        self._dealers: list[Dealer] = []
        try:
            for one in endpoints:
                self._dealers.append(Dealer(one, keys))
        except ConfigError:
            Connection.close(self)
            raise

    @property
    def endpoint(self) -> str:
        """Of the server that is asked now."""
        return self.endpoints[self._failover.active]

    @property
    def failovers(self) -> int:
        """How often a server was left because it gave no answer, or was going."""
        return self._failover.left

    @property
    def _socket(self) -> zmq.Socket[bytes]:
        return self._dealers[self._failover.active].socket

    def close(self) -> None:
        self._shut(0)

    def _shut(self, linger_ms: int) -> None:
        for dealer in self._dealers:
            dealer.close(linger_ms)

    def __enter__(self: C) -> C:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, kind: str, deadline: Deadline, **fields: Any) -> Message:
        """Send one message and wait for its reply."""
        message = envelope.message(kind, next(self._ids), **fields)
        server = self._post(message, deadline)
        if (reply := self._await(message["id"], deadline, server)) is None:
            raise self._lost(server, f"no answer to {kind} before the deadline")
        return reply

    def _post(self, message: Message, deadline: Deadline) -> int:
        """Send to the active server, or where it cannot be sent to within a moment, to the next one that can. Returns
        which one. Raises ServerLost; LockedOut as soon as the only server is known not to let us in."""
        frames = wire.encode(message)
        if self._send(self._failover.active, frames):
            return self._failover.active
        patience = Deadline.after(min(PATIENCE_S, deadline.remaining() / 2))  # it may be connecting again
        while True:
            active = self._failover.active
            if self._send(active, frames):
                return active
            refusal = self._dealers[active].handshake.refusal()
            if len(self._dealers) > 1 and (refusal or patience.passed()):
                for server in self._failover.order(now())[1:]:
                    if self._send(server, frames):
                        self._leave(active, "no server there", server)
                        return server
            if refusal:
                raise self._lost(active, refusal, LockedOut)
            if deadline.passed():
                raise self._lost(active, "no server there before the deadline")
            self._wait_writable(deadline if len(self._dealers) == 1 or patience.passed() else patience, patience)

    def _wait_writable(self, deadline: Deadline, patience: Deadline) -> None:
        """Wait until the active server can be sent to or refuses us; once patience is over, until any does."""
        poller = zmq.Poller()
        for server in range(len(self._dealers)) if patience.passed() else [self._failover.active]:
            poller.register(self._dealers[server].socket, zmq.POLLOUT)
            if server != self._failover.active:
                self._dealers[server].handshake.refusal()  # heard, so it is silent until it tells more
            poller.register(self._dealers[server].handshake.socket, zmq.POLLIN)
        poller.poll(_milliseconds(deadline))

    def _send(self, server: int, frames: Sequence[Buffer]) -> bool:
        """Whether there was a server to send to; does not wait for one."""
        return self._dealers[server].send(frames)

    def _await(self, id: int, deadline: Deadline, server: int) -> Message | None:
        """The reply with this id, or None once the deadline has passed. Raises the error it reports, if it does."""
        unwanted = 0
        while (reply := self._receive(deadline, server)) is not None:
            if reply.get("id") == id:
                if reply["kind"] == "error":
                    error = envelope.to_error(reply)
                    if isinstance(error, Draining | ServerFailed):
                        self._leave(server, str(error))
                    raise error
                return reply
            self.dropped["late" if reply else "garbage"] += 1
            unwanted += 1
            if deadline.passed() and unwanted > BACKLOG:  # a peer that floods does not hold the caller
                return None
        return None

    def _receive(self, deadline: Deadline, server: int) -> Message | None:
        """The next message: {} when it was garbage, None once the deadline has passed without one."""
        frames = self._dealers[server].receive(_milliseconds(deadline))
        if frames is None:
            return None
        try:
            message = wire.decode(frames, fault=BadReply)
            fields = envelope.Fields(message, BadReply)
            fields.integer("id")
            fields.text("kind", 32)
        except BadReply:
            return {}
        return message

    # Several servers.

    def _lost(self, server: int, what: str, kind: type[ServerLost] = ServerLost) -> ServerLost:
        self._leave(server, what)
        return kind(f"{self.endpoints[server]}: {what}")

    def _leave(self, server: int, why: str, successor: int | None = None) -> None:
        """Let the next call go to another server, where there is one."""
        if len(self._dealers) == 1 or server != self._failover.active:
            return
        self._failover.lose(now())
        if successor is not None:
            self._failover.use(successor)
        self._look = None
        if not self._failover.away(self._failover.active, now()):  # else all are, and it was said
            log.warning("%s: %s; the next call goes to %s", self.endpoints[server], why, self.endpoint)
        self._say_goodbye(server)

    def _look_back(self) -> None:
        """Ask a server that is preferred to the active one whether it is ready, and return to it when it said so. Never
        waits; call between two questions."""
        look = self._look
        if look is None:
            if (server := self._failover.due(now())) is not None:
                look = _Look(server, next(self._ids), Deadline.after(LOOK_S))
                if self._send(server, wire.encode(envelope.message("ping", look.id))):
                    self._look = look
                else:
                    self._failover.looked(server, False, now())
            return
        for _ in range(BACKLOG):
            reply = self._receive(Deadline.after(0.0), look.server)
            if reply is None:
                break
            if reply.get("id") == look.id:
                self._looked(look.server, reply.get("state") == "ready")
                return
            self.dropped["late" if reply else "garbage"] += 1  # to a question from before it was left
        if look.deadline.passed():
            self._looked(look.server, False)

    def _looked(self, server: int, ready: bool) -> None:
        self._look, left = None, self._failover.active
        if self._failover.looked(server, ready, now()):
            log.warning("%s is ready again and asked instead of %s", self.endpoint, self.endpoints[left])
            self._say_goodbye(left)

    def _say_goodbye(self, server: int) -> None:
        """That server is not asked any more; it may hold something."""


def _milliseconds(deadline: Deadline) -> int:
    """For zmq.poll, which takes whole milliseconds: rounded up, so that a wait never ends before its time."""
    remaining = deadline.remaining()
    return int(1000 * remaining) + 1 if remaining else 0
