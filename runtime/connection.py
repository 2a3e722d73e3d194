"""A client's socket. Every call has a deadline, whatever the server does.

A request has an id that rises. A reply with another id than the one awaited is dropped and counted, so a late or
reordered answer is never taken for a newer one. When the server dies, freezes or restarts, a call costs at most its
deadline, and the connection comes back by itself.
"""

from __future__ import annotations

import itertools
from collections import Counter
from types import TracebackType
from typing import Any, TypeVar

import zmq

from hotpolicy.runtime import envelope, wire
from hotpolicy.runtime.clock import Deadline
from hotpolicy.runtime.errors import BadReply, ConfigError, ServerLost
from hotpolicy.runtime.wire import Message

C = TypeVar("C", bound="Connection")
BACKLOG = 256  # replies that may wait in the socket


class Connection:
    """A DEALER socket that keeps deadlines. For one thread at a time."""

    def __init__(self, endpoint: str):
        """Raises ConfigError when the endpoint is not one. A server that is not there yet is no error."""
        self.endpoint = endpoint
        self.dropped: Counter[str] = Counter()  # replies not used, by reason: "late", "garbage"
        self._ids = itertools.count(1)
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for a server that is not there
        self._socket.setsockopt(zmq.SNDHWM, 8)
        self._socket.setsockopt(zmq.RCVHWM, BACKLOG)
        self._socket.setsockopt(zmq.MAXMSGSIZE, wire.CAPS.message_bytes)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)  # ms, doubling
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, 2000)
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, 2000)  # a server that vanished without a word is noticed
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self._socket.close(0)
            raise ConfigError(f"endpoint: expected tcp://HOST:PORT or ipc://PATH, got {endpoint!r}") from error

    def close(self) -> None:
        self._socket.close(0)

    def __enter__(self: C) -> C:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, kind: str, deadline: Deadline, **fields: Any) -> Message:
        """Send one message and wait for its reply."""
        message = envelope.message(kind, next(self._ids), **fields)
        self._post(message, deadline)
        if (reply := self._await(message["id"], deadline)) is None:
            raise ServerLost(f"{self.endpoint}: no answer to {kind} before the deadline")
        return reply

    def _post(self, message: Message, deadline: Deadline) -> None:
        frames = wire.encode(message)
        while True:
            try:
                self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
                return
            except zmq.Again:
                if not self._socket.poll(_milliseconds(deadline), zmq.POLLOUT) and deadline.passed():
                    raise ServerLost(f"{self.endpoint}: no server there before the deadline") from None

    def _await(self, id: int, deadline: Deadline) -> Message | None:
        """The reply with this id, or None once the deadline has passed. Raises the error it reports, if it does."""
        unwanted = 0
        while (reply := self._receive(deadline)) is not None:
            if reply.get("id") == id:
                if reply["kind"] == "error":
                    raise envelope.to_error(reply)
                return reply
            self.dropped["late" if reply else "garbage"] += 1
            unwanted += 1
            if deadline.passed() and unwanted > BACKLOG:  # a peer that floods does not hold the caller
                return None
        return None

    def _receive(self, deadline: Deadline) -> Message | None:
        """The next message: {} when it was garbage, None once the deadline has passed without one."""
        self._socket.set(zmq.RCVTIMEO, _milliseconds(deadline))
        try:
            frames = self._socket.recv_multipart(copy=False)
        except zmq.Again:
            return None
        try:
            message = wire.decode([frame.buffer for frame in frames], fault=BadReply)
            fields = envelope.Fields(message, BadReply)
            fields.integer("id")
            fields.text("kind", 32)
        except BadReply:
            return {}
        return message


def _milliseconds(deadline: Deadline) -> int:
    """For zmq.poll, which takes whole milliseconds: rounded up, so that a wait never ends before its time."""
    return int(1000 * deadline.remaining()) + 1 if deadline.remaining() else 0
