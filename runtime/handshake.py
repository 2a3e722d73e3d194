"""Why a client's connection does not come about: told by libzmq's monitor, which no message ever would.

A server that is not there refuses the connection, and libzmq tries again. One that is there and does not let a client
in hangs up, with a reason or without one; libzmq then gives up for good, or tries again without a pause.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import struct

import zmq

from hotpolicy.runtime.clock import now

KNOCK_S = 0.5  # between two tries at a server that does not let us in
HUNG_UP = 3  # times in a row without a word, while connections come about: no accident
_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
)
_numbers = itertools.count()


class Handshake:
    """Of one client socket, made before it connects. `socket` becomes readable when something has happened."""

    def __init__(self, watched: zmq.Socket[bytes], endpoint: str, locked: bool):
        """`locked`: whether the client has keys."""
        self._watched, self._endpoint, self._locked = watched, endpoint, locked
        self._refused = ""
        self._hung_up = 0  # times in a row
        self._broken = 0  # connections that came about and are over
        self._knocked = now()
        address = f"inproc://hotpolicy-handshake-{next(_numbers)}"
        watched.monitor(address, int(_EVENTS))
        self.socket: zmq.Socket[bytes] = watched.context.socket(zmq.PAIR)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.RCVHWM, 0)  # a full one would stop libzmq's own thread
        self.socket.connect(address)

    def refusal(self) -> str:
        """Why the server does not let this client in, as far as is known; empty: it has not said so. Asked again later,
        it is tried again. Never waits."""
        while self.socket.poll(0):
            told, _ = self.socket.recv_multipart()  # pyzmq's own parser brings asyncio along
            event, value = struct.unpack("=HI", told)
            if event == zmq.EVENT_DISCONNECTED:  # says nothing of why
                self._broken += 1
                continue
            self._refused = self._read(event, value)
            if self._refused:
                self._knocked, self._hung_up = now(), 0
                with contextlib.suppress(zmq.ZMQError):  # it has given up
                    self._watched.disconnect(self._endpoint)
        if self._refused and now() - self._knocked >= KNOCK_S:
            self._refused, self._knocked = "", now()
            self._watched.connect(self._endpoint)
        return self._refused

    def broken(self) -> int:
        """How many connections are over: whatever was asked over one of them gets no answer any more."""
        self.refusal()
        return self._broken

    def _read(self, event: int, value: int) -> str:
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return "this client's key is not allowed there; on the server: hotpolicy keys allow NAME.key --server DIR"
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            return self._mismatch()
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._hung_up = 0
        elif value in (errno.EPIPE, errno.ECONNRESET):
            self._hung_up += 1
            if self._hung_up >= HUNG_UP and self._locked:
                return "the server there has another key than the one given as its own, or asks for none, or is crowded"
            if self._hung_up >= HUNG_UP:
                return f"{self._mismatch()}; or it is crowded"
        return ""

    def _mismatch(self) -> str:
        if self._locked:
            return "the server there asks for no keys: connect without, or serve with --keys"
        return "the server there asks for keys: connect with --key and --server-key"

    def close(self) -> None:
        self._watched.disable_monitor()
        self.socket.close(0)
