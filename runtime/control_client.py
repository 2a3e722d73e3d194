"""The operator's side of the control socket. Every call has a deadline; no torch here."""

from __future__ import annotations

import uuid
from typing import Any

from hotpolicy.runtime import envelope
from hotpolicy.runtime.clock import Deadline, now
from hotpolicy.runtime.connection import Connection
from hotpolicy.runtime.errors import BadReply, ServerLost
from hotpolicy.runtime.keys import ClientKeys


class ControlClient(Connection):
    """Operators' commands. They may take minutes (a version loads), so a call waits as long as the server lives."""

    def __init__(self, endpoint: str, timeout_s: float = 3.0, longest_s: float = 600.0, keys: ClientKeys | None = None):
        """`timeout_s`: silence after which the server counts as lost. `longest_s`: the end of any command."""
        super().__init__(endpoint, keys)
        self.timeout_s, self.longest_s = timeout_s, longest_s

    def ping(self) -> str:
        return envelope.Fields(self._ask("ping", Deadline.after(self.timeout_s)), BadReply).text("state", 16)

    def stage(self, version: str, **fields: Any) -> dict[str, Any]:
        """Load and check a version beside the live one. Raises UnknownVersion, SwapRefused, BundleError, ServerLost."""
        return self.command("stage", version=version, **fields)

    def swap(self, version: str, **fields: Any) -> dict[str, Any]:
        """Stage and promote in one. Raises as `stage` does."""
        return self.command("swap", version=version, **fields)

    def promote(self, version: str, **fields: Any) -> dict[str, Any]:
        return self.command("promote", version=version, **fields)

    def rollback(self, **fields: Any) -> dict[str, Any]:
        return self.command("rollback", **fields)

    def versions(self) -> dict[str, Any]:
        return self.command("versions")

    def status(self) -> dict[str, Any]:
        return self.command("status")

    def history(self) -> dict[str, Any]:
        return self.command("history")

    def shutdown(self) -> dict[str, Any]:
        return self.command("shutdown")

    def command(self, kind: str, request_id: str | None = None, **fields: Any) -> dict[str, Any]:
        """Send a command and wait for its result, pinging meanwhile to tell a busy server from a lost one.

        Repeating a command under the same `request_id` is harmless; without one, a fresh one is made. Raises ServerLost
        when the server is silent, or its connection breaks: whether the command was done is then not known.
        """
        longest = Deadline.after(self.longest_s)
        message = envelope.message(kind, next(self._ids), request_id=request_id or uuid.uuid4().hex, **fields)
        handshake = self._dealers[self._failover.active].handshake
        broken = handshake.broken()  # before it is sent: a connection that breaks meanwhile may have swallowed it
        self._post(message, Deadline.after(self.timeout_s))
        heard = now()
        while not longest.passed():
            reply = self._receive(Deadline.after(min(self.timeout_s / 3, longest.remaining())), 0)
            if reply is None:
                if now() - heard >= self.timeout_s:
                    raise ServerLost(f"{self.endpoint}: silent for {self.timeout_s:g} s during {kind}")
                if handshake.broken() != broken:  # a new server would answer pings, and never this
                    raise ServerLost(f"{self.endpoint}: {kind}: the connection broke, or the server was restarted")
                self._post(envelope.message("ping", next(self._ids)), Deadline.after(self.timeout_s))
                continue
            if not reply:
                self.dropped["garbage"] += 1
                continue
            heard = now()
            if reply["id"] != message["id"]:
                continue
            if reply["kind"] == "error":
                raise envelope.to_error(reply)
            return envelope.Fields(reply, BadReply).mapping("result")
        raise ServerLost(f"{self.endpoint}: {kind} did not end within {self.longest_s:g} s")
