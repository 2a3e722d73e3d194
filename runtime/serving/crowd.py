"""The connections of a server's sockets: what libzmq does not bound, the kernel counts and ends.

libzmq has caps on the size of a frame and on the number of messages it holds, and none on the frames of a message: a
peer that never ends one fills the memory, with 64 bytes for each frame of two. The kernel knows how many bytes came
over a connection, and the router which connections it has had a message from. A connection over which more has come
than two of the largest messages, or for longer than any message takes, and no message, is ended.

Of a path, ipc://, the kernel does not count, but tells at each look whether anything came at all. A connection is ended
over which something came in SURE looks without a message, while the process grew by two of the largest messages; or in
SLOW looks, however it grew. So what one can fill is what comes in as many looks, at the speed of the machine.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import struct
import threading
from dataclasses import dataclass

import zmq

from hotpolicy.runtime.clock import now
from hotpolicy.runtime.metrics import resident_bytes
from hotpolicy.runtime.seldom import Seldom
from hotpolicy.runtime.serving.arrivals import Arrivals

logger = logging.getLogger(__name__)

MOST = 256  # connections of one socket; for one more the oldest that has not introduced itself is closed, or itself
LOOK_S = 0.2
HELD = 2  # messages of the largest size: more than this is none
LONGEST_S = 5.0  # that a message of more than LITTLE may be on its way
LITTLE = 1 << 20  # bytes
SURE, SLOW = (
    5,
    25,
)  # looks at which something came by a path and no message; a robot whose answer takes long has up to 4
PLAIN, CURVE = 90, 500  # bytes of the least greeting and handshake, without keys and with: libzmq's own have a few more
_RECEIVED = struct.Struct("=128xQ")  # in Linux's tcp_info: tcpi_bytes_received
_numbers = itertools.count()


@dataclass(slots=True)
class _Connection:
    ended: int = 0  # bytes that had come when we last knew that a message was over
    received: int = 0  # and at the last look
    suspected: float = 0.0  # since when, monotonic s; 0: it is not
    introduced: bool = False  # as much has come as an introduction has
    local: bool = False  # by a path
    looks: int = 0  # at which something had come, since a message was over
    grown: int = 0  # bytes that the process grew by in those


class Crowd:
    """Of one socket: made before it is bound, with a thread of its own from `start` to `close`."""

    def __init__(self, watched: zmq.Socket[bytes], message_bytes: int):
        """`message_bytes`: the most a message may have."""
        self.introduction = PLAIN  # bytes
        self.heard: set[int] | None = None  # descriptors a message came over, while that is asked for
        self.hung_up = 0  # connections ended by us
        self._watched, self._most_bytes = watched, HELD * message_bytes
        self._endpoint = ""
        self._connections: dict[int, _Connection] = {}
        self._arrivals = Arrivals()
        self._resident = 0  # bytes, at the last look
        self._seldom = Seldom()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hotpolicy-crowd", daemon=True)
        address = f"inproc://hotpolicy-crowd-{next(_numbers)}"
        watched.monitor(address, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._events: zmq.Socket[bytes] = watched.context.socket(zmq.PAIR)
        self._events.set(zmq.LINGER, 0)
        self._events.set(zmq.RCVHWM, 0)  # a full one would stop libzmq's own thread
        self._events.connect(address)

    def start(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._thread.start()

    def close(self) -> None:
        """Before the socket is closed, and by the thread that closes it."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._watched.disable_monitor()
        self._events.close(0)
        self._arrivals.close()

    def hang_up(self, descriptor: int, why: str) -> None:
        """End one connection. Its peer may come again."""
        self.hung_up += 1
        if count := self._seldom.due():
            logger.warning("%s: a client was hung up on (%d since last said): %s", self._endpoint, count, why)
        with _borrowed(descriptor, self._endpoint) as connection:
            if connection:
                connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )  # a reset, no goodbye
                connection.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        while not self._ended.is_set():
            if self._events.poll(int(1000 * LOOK_S)):
                self._take(*struct.unpack("=HI", self._events.recv_multipart()[0]))
            else:
                self._look()
            if self._events.poll(0) and self.heard is not None:
                self._look()  # a crowd that comes and goes does not keep us from looking

    def _take(self, event: int, descriptor: int) -> None:
        if event != zmq.EVENT_ACCEPTED:
            self._connections.pop(descriptor, None)
            return
        local = self._endpoint.startswith("ipc://")
        self._connections[descriptor] = _Connection(local=local)
        if local:
            self._arrivals.watch(descriptor)
        if len(self._connections) > MOST:
            stranger = next((one for one in self._connections if not self._is_introduced(one)), descriptor)
            self.hang_up(stranger, f"{MOST} connections are there already")
            del self._connections[stranger]  # a crowd is faster than what libzmq tells of it

    def _is_introduced(self, descriptor: int) -> bool:
        connection = self._connections[descriptor]
        if not connection.introduced:
            received = self._received(descriptor)
            connection.introduced = received is None or received >= self.introduction
        return connection.introduced

    def _look(self) -> None:
        """The router is asked of those over which much has come; what it says by the next look is judged then."""
        heard, self.heard = self.heard, None
        came, before, self._resident = self._arrivals.since(), self._resident, resident_bytes()
        for descriptor, connection in self._connections.items():
            if not connection.local:
                self._judge(descriptor, connection, heard)
            elif descriptor in came or (heard and descriptor in heard):
                self._judge_local(descriptor, connection, heard, max(0, self._resident - before))
        if any(connection.suspected for connection in self._connections.values()):
            self.heard = set()

    def _judge(self, descriptor: int, connection: _Connection, heard: set[int] | None) -> None:
        before, connection.received = connection.received, self._received(descriptor) or 0
        unheard = connection.received - connection.ended
        if heard and descriptor in heard:
            connection.ended, connection.suspected = connection.received, 0.0
        elif unheard > LITTLE and not connection.suspected:
            connection.suspected = now()
        elif not connection.suspected or heard is None or connection.received == before:
            return
        elif unheard > self._most_bytes or now() - connection.suspected > LONGEST_S:
            self.hang_up(descriptor, f"{unheard} bytes of it are no message")
            connection.ended, connection.suspected = connection.received, 0.0

    def _judge_local(self, descriptor: int, connection: _Connection, heard: set[int] | None, grown: int) -> None:
        """Something came. That no message did is known where they were listened for."""
        if heard and descriptor in heard:
            connection.looks, connection.grown, connection.suspected = 0, 0, 0.0
            return
        connection.looks += 1
        connection.grown += grown
        if connection.looks > 1 and not connection.suspected:
            connection.suspected = now()
        elif heard is not None and (
            connection.looks >= SLOW or (connection.looks >= SURE and connection.grown > self._most_bytes)
        ):
            self.hang_up(descriptor, f"{connection.looks * LOOK_S:g} s of it are no message")
            connection.looks, connection.grown, connection.suspected = 0, 0, 0.0

    def _received(self, descriptor: int) -> int | None:
        """Bytes that have come over it; None: the kernel does not count them, or it is over."""
        with _borrowed(descriptor, self._endpoint) as connection:
            if connection and connection.family != socket.AF_UNIX:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED.size)
                if len(info) == _RECEIVED.size:
                    return int(_RECEIVED.unpack(info)[0])
        return None


class _borrowed(contextlib.AbstractContextManager["socket.socket | None"]):
    """libzmq's descriptor as a socket, if it is still one that came in at this endpoint. Errors of it are no matter."""

    def __init__(self, descriptor: int, endpoint: str):
        self._socket: socket.socket | None = None
        try:
            borrowed = socket.socket(fileno=os.dup(descriptor))
        except OSError:  # gone, or no socket
            return
        try:
            listening = borrowed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if not listening and _came_in_at(borrowed.getsockname(), endpoint):
                self._socket = borrowed
                return
        except OSError:
            pass
        borrowed.close()

    def __enter__(self) -> socket.socket | None:
        return self._socket

    def __exit__(self, kind: object, error: object, trace: object) -> bool:
        if self._socket:
            self._socket.close()
        return isinstance(error, OSError)


def _came_in_at(local: object, endpoint: str) -> bool:
    if isinstance(local, tuple):  # address, port and more
        return endpoint.startswith("tcp://") and str(local[1]) == endpoint.rpartition(":")[2]
    path = os.fsdecode(local) if isinstance(local, bytes) else str(local)
    return endpoint in (f"ipc://{path}", f"ipc://@{path[1:]}")
