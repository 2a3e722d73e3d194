"""The control socket: operators' commands, done one after another by a thread of their own."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from hotpolicy.runtime import envelope, wire
from hotpolicy.runtime.errors import BadReply, BadRequest, Busy, HotpolicyError
from hotpolicy.runtime.fronts.native import Native
from hotpolicy.runtime.serving.desk import Desk
from hotpolicy.runtime.serving.router import Router
from hotpolicy.runtime.wire import COMMAND_CAPS, Buffer, Message

logger = logging.getLogger(__name__)

COMMANDS = 64  # that may wait
OF_PEER = 4  # of them of one peer: an operator sends the next when he has the answer
VERBS = ("stage", "swap", "promote", "rollback", "versions", "status", "history")


class Control(Protocol):
    def handle(self, message: Message) -> dict[str, Any]: ...  # raises HotpolicyError; called by one thread


class Operators:
    """`handle` is for the thread that receives; `run` is the control thread, until `stop`."""

    def __init__(self, router: Router, desk: Desk, control: Control):
        self.router, self._desk, self._control = router, desk, control
        self._native = Native(router, COMMAND_CAPS, desk.meter, self._reply_to)
        self._commands: queue.Queue[tuple[bytes, Message] | None] = queue.Queue(COMMANDS)
        self._lock = threading.Lock()
        self._waiting: Counter[bytes] = Counter()  # commands, by peer

    def handle(self, peer: bytes, frames: Sequence[Buffer]) -> None:
        self._native.handle(peer, frames)

    def run(self) -> None:
        while (command := self._commands.get()) is not None:
            peer, message = command
            with self._lock:
                self._waiting -= Counter((peer,))  # a peer that has none is not kept
            self._native.send(peer, _deliverable(self._done(message)))

    def stop(self) -> None:
        """Let the thread end after the command it does."""
        with contextlib.suppress(queue.Full):
            self._commands.put_nowait(None)

    def _reply_to(self, peer: bytes, message: Message) -> Message | None:
        id, kind, life = message["id"], message.get("kind"), self._desk.life
        if kind == "ping":
            return envelope.message("pong", id, state=life.state)
        if kind == "shutdown":
            life.ended.set()
            return envelope.message("control", id, result={"state": "draining"})
        if kind not in VERBS:
            raise BadRequest(f"kind: expected one of ping, shutdown, {', '.join(VERBS)} on the control endpoint")
        with self._lock:
            try:
                if self._waiting[peer] >= OF_PEER:
                    raise Busy(f"control: {OF_PEER} commands of this client are waiting already")
                self._commands.put_nowait((peer, message))
            except queue.Full as error:
                raise Busy(f"control: {COMMANDS} commands are waiting already") from error
            self._waiting[peer] += 1
        return None

    def _done(self, message: Message) -> Message:
        id, kind = message["id"], message["kind"]
        try:
            result = self._control.handle(message)
        except HotpolicyError as error:
            return envelope.from_error(id, error)
        except Exception as error:
            logger.exception("control %s failed", kind)
            return envelope.from_error(id, HotpolicyError(f"{kind}: {type(error).__name__}: {error}"))
        if kind == "status":
            result = {**result, "server": self._desk.stats()}
        return envelope.message("control", id, result=result)


def _deliverable(reply: Message) -> Message:
    """The reply, or why no client could read it: else one would wait for it as for a slow command."""
    try:
        wire.decode(wire.encode(reply), fault=BadReply)
    except (BadRequest, BadReply) as error:
        logger.error("a control reply could not be read: %s", error)
        return envelope.from_error(reply["id"], HotpolicyError(f"reply: {error}"))
    return reply
