"""One client socket to one server. It knows frames and no messages, and never waits for longer than it is told."""

from __future__ import annotations

from collections.abc import Sequence

import zmq

from hotpolicy.runtime import wire
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.handshake import Handshake
from hotpolicy.runtime.keys import ClientKeys
from hotpolicy.runtime.wire import Buffer

BACKLOG = 256  # replies that may wait in it
COPIED = 256 << 10  # bytes of a frame below which a copy costs less than to lend it to libzmq
_NOBLOCK, _SNDMORE = int(zmq.NOBLOCK), int(zmq.SNDMORE)  # looked up with each request, and slow as enumerations
_RCVTIMEO, _RCVMORE = int(zmq.RCVTIMEO), int(zmq.RCVMORE)


class Dealer:
    def __init__(self, endpoint: str, keys: ClientKeys | None):
        """Raises ConfigError when the endpoint is none. A server that is not there yet is no error."""
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for a server that is not there
        socket.setsockopt(zmq.SNDHWM, 8)
        socket.setsockopt(zmq.RCVHWM, BACKLOG)
        socket.setsockopt(zmq.MAXMSGSIZE, wire.CAPS.message_bytes)
        socket.setsockopt(zmq.RECONNECT_IVL, 20)  # ms, doubling
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        socket.setsockopt(zmq.HANDSHAKE_IVL, 2000)
        if not endpoint.startswith("ipc://"):  # there the kernel says so
            socket.setsockopt(zmq.HEARTBEAT_IVL, 2000)  # a server that vanished without a word is noticed
        socket.setsockopt(zmq.IPV6, 1)  # of a name that has addresses of both kinds, either will do
        if keys and not endpoint.startswith("ipc://"):  # a path is guarded by its permissions, and asks for no keys
            keys.lock(socket)
        self.socket, self.handshake = socket, Handshake(socket, endpoint, locked=keys is not None)
        self._wait = -1  # for a reply, as libzmq was told last, ms
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close(0)
            raise ConfigError(f"endpoint: expected tcp://HOST:PORT or ipc://PATH, got {endpoint!r}") from error

    def send(self, frames: Sequence[Buffer]) -> bool:
        """Whether there was a server to send to; does not wait for one."""
        socket, last = self.socket, len(frames) - 1
        try:
            for number, frame in enumerate(frames):
                socket.send(frame, _NOBLOCK if number == last else _NOBLOCK | _SNDMORE, len(frame) < COPIED)
        except zmq.Again:
            return False
        return True

    def receive(self, wait_ms: int) -> list[Buffer] | None:
        """The frames of the next message, or None when there is none after so long."""
        socket = self.socket
        if wait_ms != self._wait:
            socket.setsockopt(_RCVTIMEO, wait_ms)
            self._wait = wait_ms
        try:
            frames: list[Buffer] = [socket.recv()]
        except zmq.Again:
            return None
        more = socket.getsockopt(_RCVMORE)
        while more:  # all of a message is there once its first part is
            part = socket.recv(0, False)
            frames.append(part.buffer)
            more = part.more
        return frames

    def close(self, linger_ms: int) -> None:
        if not self.socket.closed:
            self.handshake.close()
            self.socket.close(linger_ms)
