"""openpi's websocket clients, unmodified: a thread per connection, all of them at the same desk.

Health is told over plain HTTP whatever the model does. Web pages cannot get in: a browser names its origin, and their
clients do not.
"""

from __future__ import annotations

import itertools
import logging
import socket
import struct
import threading
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from hotpolicy.runtime.errors import Busy, ConfigError
from hotpolicy.runtime.fronts import keymap
from hotpolicy.runtime.fronts.keymap import Fitting
from hotpolicy.runtime.fronts.openpi_talk import Talk
from hotpolicy.runtime.fronts.settings import OpenpiSettings, same
from hotpolicy.runtime.metrics import Meter
from hotpolicy.runtime.serving.desk import Desk

if TYPE_CHECKING:
    from websockets.http11 import Request, Response
    from websockets.sync.server import ServerConnection

HALF_OPEN = 64  # sockets beside the connections: health checks, handshakes under way
HANDSHAKE_S = 2.0
SENDING_S = 5  # for a client to read what it asked for
CLOSING_S = 1.0  # for the other end to say goodbye
TRY_LATER = 1013


class Openpi:
    """Raises ConfigError when the key map does not fit the live policy's robot."""

    def __init__(self, desk: Desk, settings: OpenpiSettings):
        self.meter = Meter()
        self._desk, self._settings = desk, settings
        self._fitting = Fitting(settings.keymap, keymap.openpi_default)
        self._fitting.fit(desk.policy.spec)
        self._lock = threading.Lock()
        self._talks: set[Talk] = set()
        self._closing = False
        self._sockets = threading.Semaphore(settings.connections + HALF_OPEN)
        self._names = itertools.count(1)

    def start(self) -> int:
        """The port it listens on. Raises ConfigError when the port is taken or the library is not installed."""
        try:
            from websockets.sync.server import serve
        except ImportError as error:
            raise ConfigError("openpi: expected the package websockets: pip install 'hotpolicy[openpi]'") from error
        try:
            listener = socket.create_server(("127.0.0.1", self._settings.port))
        except OSError as error:
            raise ConfigError(f"openpi: cannot listen on 127.0.0.1:{self._settings.port}: {error.strerror}") from error
        quiet = logging.getLogger("hotpolicy.openpi")
        quiet.setLevel(logging.CRITICAL)  # strangers' broken handshakes would fill the log
        self._server = serve(
            self._talk,
            sock=listener,
            origins=[None],
            compression=None,
            process_request=self._request,
            open_timeout=HANDSHAKE_S,
            close_timeout=CLOSING_S,
            max_size=self._desk.config.caps.message_bytes,
            max_queue=4,
            server_header=None,
            logger=quiet,
        )
        self._handle = self._server.handler
        self._server.handler = self._accept
        self._thread = threading.Thread(target=self._server.serve_forever, name="hotpolicy-openpi", daemon=True)
        self._thread.start()
        return int(listener.getsockname()[1])

    def close(self) -> None:
        """Say goodbye to every client, and return once it is done."""
        with self._lock:
            self._closing = True
            closers = [threading.Thread(target=talk.stop) for talk in self._talks]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join()
        self._server.shutdown()
        self._thread.join()

    def _accept(self, connection: socket.socket, address: Any) -> None:
        """The thread of a new socket, before the library's handshake."""
        if not self._sockets.acquire(blocking=False):
            self.meter.count(Busy.code)
            connection.close()
            self._handle(connection, address)  # which tidies up after a socket that is gone
            return
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SENDING_S, 0))
            self._handle(connection, address)
        finally:
            self._sockets.release()

    def _request(self, connection: ServerConnection, request: Request) -> Response | None:
        """Health, and who may come in. None: go on with the handshake."""
        if request.path.partition("?")[0] == "/healthz":
            self.meter.count("health_checks")
            state = self._desk.life.state
            if state == "ready":
                return connection.respond(HTTPStatus.OK, "OK\n")
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, f"{state}\n")
        if self._settings.key:
            given = request.headers.get_all("Authorization")
            if len(given) != 1 or not same(given[0], f"Api-Key {self._settings.key}"):
                self.meter.count("unauthorized")
                return connection.respond(HTTPStatus.UNAUTHORIZED, "expected Authorization: Api-Key KEY\n")
        return None

    def _talk(self, connection: ServerConnection) -> None:
        """The thread of one connection."""
        settings = self._settings
        name = str(next(self._names))
        talk = Talk(connection, self._desk, self.meter, self._fitting, name, settings.deadline_ms)
        with self._lock:
            full = self._closing or len(self._talks) >= settings.connections
            if not full:
                self._talks.add(talk)
        if full:
            self.meter.count(Busy.code)
            connection.close(TRY_LATER, f"{settings.connections} clients are connected already")
            return
        self.meter.count("connections")
        try:
            talk.run()
        finally:
            with self._lock:
                self._talks.discard(talk)
            self._desk.leave(talk.session)
