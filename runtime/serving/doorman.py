"""Who is let in at a server's doors: answers libzmq's question about each client that proved its key (ZAP, RFC 27).

One per ZeroMQ context, with a thread of its own, so that a crowd at the doors costs nobody who is inside. The list of
clients is a file that is read again when it has changed: who is allowed comes in at once, and who is revoked is kept
out, and heard no more within a second where he is in already.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from typing import Literal

import zmq
from zmq.utils import z85

from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.keys import CLIENTS, Role, ServerKeys, read_clients
from hotpolicy.runtime.seldom import Seldom

logger = logging.getLogger(__name__)

Door = Literal["robots", "operators"]
OPEN_TO: Mapping[Door, tuple[Role, ...]] = {"robots": ("robot", "operator"), "operators": ("operator",)}
LOOK_S = 1.0  # how long a client that is inside may go on after it was revoked
KNOCKS = 64  # questions that may wait
_ENDPOINT = "inproc://zeromq.zap.01"  # where libzmq asks


class Guests:
    """The list of clients, as its file has it now. For any thread."""

    def __init__(self, keys: ServerKeys):
        """Raises ConfigError when the list is damaged; one that is damaged later lets in those it named before."""
        self._keys = keys
        self._lock = threading.Lock()
        self._looked = 0.0
        self._signature: tuple[int, ...] | None = None
        self._by_key: dict[bytes, tuple[str, Role]] = {}
        self._roles: dict[str, Role] = {}
        self._banned: set[str] = set()
        self._read()

    def name_of(self, public: bytes, door: Door) -> str | None:
        """Who comes with this key (Z85); None: nobody who may come in here."""
        self._look(0.0)
        name, role = self._by_key.get(public, ("", None))
        return name if role in OPEN_TO[door] and name not in self._banned else None

    def ban(self, name: str) -> None:
        """One that did what no client of ours does. Until the list changes it is as one that was revoked."""
        logger.error("%s is kept out from now on, until a key is allowed or revoked", name)
        self._banned.add(name)

    def may_stay(self, name: str, door: Door) -> bool:
        self._look(LOOK_S)
        return self._roles.get(name) in OPEN_TO[door] and name not in self._banned

    def _look(self, at_most_every_s: float) -> None:
        if now() - self._looked < at_most_every_s:
            return
        with self._lock:
            try:
                self._read()
            except ConfigError as error:
                logger.error("the list of clients cannot be read, the one before it holds: %s", error)

    def _read(self) -> None:
        self._looked, signature = now(), self._sign()
        if signature == self._signature:
            return
        self._signature = signature  # of a damaged file too: it is complained of once
        clients = read_clients(self._keys.folder)
        self._by_key = {client.public: (client.name, client.role) for client in clients}
        self._roles = {client.name: client.role for client in clients}
        self._banned = set()

    def _sign(self) -> tuple[int, ...]:
        try:
            found = os.stat(self._keys.folder / CLIENTS)
        except OSError:
            return ()
        return (found.st_ino, found.st_mtime_ns, found.st_size)


class Doorman:
    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys: ServerKeys):
        """Raises ConfigError when the list of clients is damaged."""
        self.guests = Guests(keys)
        self._keys = keys
        self._socket = context.socket(zmq.ROUTER)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.RCVHWM, KNOCKS)
        self._socket.bind(_ENDPOINT)
        self._seldom = Seldom()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hotpolicy-doorman", daemon=True)
        self._thread.start()

    def lock(self, socket: zmq.Socket[bytes], door: Door) -> None:
        """Before it is bound."""
        socket.set(zmq.CURVE_SERVER, 1)
        socket.set(zmq.CURVE_PUBLICKEY, self._keys.own.public)
        socket.set(zmq.CURVE_SECRETKEY, self._keys.own.secret)
        socket.set(zmq.ZAP_DOMAIN, door.encode())

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        with self._socket as socket:
            while not self._ended.is_set():
                if socket.poll(100):
                    self._answer(socket, socket.recv_multipart())

    def _answer(self, socket: zmq.Socket[bytes], question: list[bytes]) -> None:
        *envelope, request, domain, address, _, mechanism = question[:8]
        credentials = question[8:]
        name, door = None, next((door for door in OPEN_TO if door.encode() == domain), None)
        if mechanism == b"CURVE" and door and len(credentials) == 1 and len(credentials[0]) == 32:
            name = self.guests.name_of(z85.encode(credentials[0]), door)
        if name is None and (count := self._seldom.due()):
            text = "a client at %s with a key that is not allowed was kept out of the %s' door (%d since last said)"
            logger.warning(text, address.decode(), door, count)
        status = b"200" if name else b"400"
        socket.send_multipart([*envelope, request, status, b"", (name or "").encode(), b""])
