"""A ROUTER socket received from by one thread and sent on by any.

libzmq lets a socket move between threads when a lock orders them. So the thread that computed an answer sends it
itself, which saves the hand-over to another thread: a quarter of a small request's time.

Rule: the socket's file descriptor tells of a *change* only, and any call on the socket may consume that. Whoever
sends therefore looks for messages afterwards and rings the receiver's bell; the receiver polls the descriptor only
after it has seen that there is nothing to receive.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import zmq
from filelock import FileLock

from hotpolicy.runtime import endpoint as endpoints
from hotpolicy.runtime.seldom import Seldom
from hotpolicy.runtime.serving.crowd import CURVE, Crowd
from hotpolicy.runtime.serving.doorman import Door, Doorman, Guests
from hotpolicy.runtime.wire import Buffer, Caps

logger = logging.getLogger(__name__)

WAITING = 4  # messages of one peer that libzmq may hold for us, in memory: 4 of the largest; then it reads no more
MOST_FRAMES = 1000  # received of one message, to be refused in the words of its dialect; whoever sends more is cut off
UNREAD: Mapping[Door, int] = {"robots": 256, "operators": 16}  # replies it may hold for a peer that does not read
PIECE = 2000  # frames skipped at a time of a message that has too many
PAUSE_S = 0.001  # between two pieces
LINGER_MS = 500  # for replies on their way when the socket closes
_EVENTS, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)  # looked up many times a request, and slow as enumerations


def _events(socket: zmq.Socket[bytes]) -> int:
    return socket.getsockopt(_EVENTS)  # type: ignore[return-value]


class Rung(Protocol):
    """Whoever receives, as the router sees it."""

    def ring(self) -> None: ...  # from any thread: there may be a message that the descriptor does not tell of


class Router:
    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        caps: Caps,
        bell: Rung,
        door: Door = "robots",
        doorman: Doorman | None = None,
    ):
        """With a `doorman` a tcp socket asks for keys, and he knows who may come in at this `door`."""
        self.dropped = 0  # replies that could not be sent
        self.shut_out = 0  # messages of clients that were revoked
        self._door, self._doorman = door, doorman
        self._overlong = False  # in the midst of a message that has too many frames
        self._seldom = Seldom()
        self._guests: Guests | None = None  # once bound, where keys are asked for
        self._bell = bell
        self._lock = threading.Lock()
        self._file_lock: FileLock | None = None
        self._socket = context.socket(zmq.ROUTER)
        self._socket.set(zmq.MAXMSGSIZE, caps.message_bytes)
        self._socket.set(zmq.RCVHWM, WAITING)
        self._socket.set(zmq.SNDHWM, UNREAD[door])  # a peer that does not read loses replies; it holds nobody up
        self._socket.set(zmq.RCVTIMEO, 0)
        self._socket.set(zmq.SNDTIMEO, 0)
        self._socket.set(zmq.LINGER, LINGER_MS)
        self._socket.set(zmq.HANDSHAKE_IVL, 2000)
        self._socket.set(zmq.HEARTBEAT_IVL, 5000)
        self._crowd = Crowd(self._socket, caps.message_bytes)
        self.fd = int(self._socket.get(zmq.FD))

    def bind(self, field: str, endpoint: str) -> str:
        """Returns the endpoint with its port. Raises ConfigError naming the field when it is taken."""
        if self._doorman and not endpoint.startswith("ipc://"):  # a path is guarded by its permissions
            self._doorman.lock(self._socket, self._door)
            self._crowd.introduction = CURVE
            self._guests = self._doorman.guests
        if endpoint.startswith("ipc://"):  # the kernel tells who is gone; a peer that says nothing is to send nothing
            self._socket.set(zmq.HEARTBEAT_IVL, 0)
        self._socket.set(zmq.IPV6, int("[" in endpoint))
        self._file_lock = endpoints.bind(self._socket, field, endpoint)
        bound = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._crowd.start(bound)
        return bound

    def receive(self) -> tuple[bytes, list[Buffer]] | None:
        """The next message and who sent it, without waiting; None: there is none, and `fd` will tell of the next.

        The header is copied, the arrays behind it are not. No frames: it was of a client that was revoked, or of more
        frames than any message has.
        """
        if self._overlong:
            time.sleep(PAUSE_S)  # a lock is not fair, and those who send need it too
        with self._lock:
            socket = self._socket
            if not _events(socket) & _POLLIN:
                return None
            if self._overlong:
                self._skip()
                return b"", []
            peer: bytes = socket.recv()
            header = socket.recv(0, False)
            welcome = not self._guests or self._may_stay(header)
            if (heard := self._crowd.heard) is not None:
                heard.add(int(header.get(zmq.SRCFD)))
            frames: list[Buffer] = [header.bytes]
            more = header.more
            while more:
                part = socket.recv(0, False)
                more = part.more
                if len(frames) < MOST_FRAMES:
                    frames.append(part.buffer)
                else:
                    self._hang_up(part)
                    return peer, []
        return peer, frames if welcome else []

    def _may_stay(self, header: zmq.Frame) -> bool:
        """Whether whoever sent this is still allowed."""
        if not self._guests or self._guests.may_stay(name := str(header.get("User-Id")), self._door):
            return True
        self.shut_out += 1
        if count := self._seldom.due():
            logger.warning("%s is not allowed any more, what it sends is dropped (%d since last said)", name, count)
        return False

    def _hang_up(self, frame: zmq.Frame) -> None:
        """On the sender of a message that has no end in sight: libzmq has no cap for that, and none of the others is
        heard until it is over. What is here of it already is skipped, a piece at a time."""
        self._overlong = True
        self._crowd.hang_up(int(frame.get(zmq.SRCFD)), f"its message has more than {MOST_FRAMES} frames")
        if self._guests:  # it would come again
            self._guests.ban(str(frame.get("User-Id")))

    def _skip(self) -> None:
        for _ in range(PIECE):
            if not self._socket.get(zmq.RCVMORE):
                self._overlong = False
                return
            self._socket.recv()

    def send(self, peer: bytes, frames: Sequence[Buffer]) -> None:
        """From any thread. A peer that is gone, or does not read, costs nothing."""
        with self._lock:
            socket = self._socket
            if socket.closed:
                return
            try:
                if len(frames) == 1:
                    socket.send(peer, zmq.SNDMORE)
                    socket.send(frames[0])
                else:
                    socket.send_multipart([peer, *frames], copy=False)
            except zmq.ZMQError as error:
                self.dropped += 1
                if count := self._seldom.due():
                    logger.warning("a reply was dropped (%d since last said): %s", count, error)
            missed = _events(socket) & _POLLIN
        if missed:
            self._bell.ring()

    def close(self) -> None:
        with self._lock:
            if not self._socket.closed:
                self._crowd.close()
            self._socket.close()
        if self._file_lock:
            self._file_lock.release()
