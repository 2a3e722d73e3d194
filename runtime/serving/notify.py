"""What the service manager is told: systemd's notification protocol, one datagram of VARIABLE=value lines at a time.

Without NOTIFY_SOCKET in the environment nothing is said to anybody.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.serving.life import State

log = logging.getLogger(__name__)
PATIENCE_S = 0.5  # for a manager that does not read; after that the message is lost, and said so in the log
SAID: Mapping[State, tuple[str, ...]] = {"ready": ("READY=1",), "draining": ("STOPPING=1",), "failed": ("STOPPING=1",)}


class Notifier:
    """Safe to use from any thread: each message is one datagram."""

    def __init__(self, address: str = "", watchdog_s: float = 0.0):
        """`address`: a path, or @NAME for an abstract socket. `watchdog_s`: the silence after which the manager ends
        this process; 0: it does not watch. Raises ConfigError for another kind of address."""
        if address and address[0] not in "/@":
            raise ConfigError(f"NOTIFY_SOCKET: expected a path or @NAME, got {address!r}")
        self.watchdog_s = watchdog_s
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._lost = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Notifier:
        """Raises ConfigError when the manager's variables make no sense."""
        watched = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = environ.get("WATCHDOG_USEC", "0") if watched else "0"
        if not microseconds.isdecimal():
            raise ConfigError(f"WATCHDOG_USEC: expected a whole number, got {microseconds!r}")
        return cls(environ.get("NOTIFY_SOCKET", ""), int(microseconds) / 1e6)

    def state(self, state: State, text: str = "") -> None:
        """A state was entered: said in words, and in the manager's own terms where it has one."""
        words = " ".join(f"{state}{': ' if text else ''}{text}".split())
        self._send((*SAID.get(state, ()), f"STATUS={words}"), PATIENCE_S)

    def alive(self) -> None:
        """Call at least every `watchdog_s`, from where it proves something. Never waits."""
        self._send(("WATCHDOG=1",), 0.0)

    def _send(self, lines: tuple[str, ...], patience_s: float) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(patience_s)
                sender.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:  # policy: serving goes on, whatever becomes of the manager
            if not self._lost:
                log.warning("the service manager was not told %s: %s", lines[0], error)
            self._lost = True
        else:
            self._lost = False
