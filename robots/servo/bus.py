"""A servo bus: one question at a time, and only answers that belong to the question.

What it promises: a reply is read by its exact size, and searched for whole answers when it is not exactly that; a servo
that does not answer costs its own data and nobody else's. A servo that stayed silent must answer a ping before anything
else is believed from it: an answer that was only late arrives before the ping's and is thrown away, so it never passes
for the answer to a newer question.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from hotpolicy.robots.servo.counts import Counts
from hotpolicy.robots.servo.echo import sort_reply
from hotpolicy.robots.servo.feetech import Feetech
from hotpolicy.robots.servo.line import Line
from hotpolicy.robots.servo.port import Port
from hotpolicy.robots.servo.protocol import Protocol, Question, Reply
from hotpolicy.robots.servo.silence import Silence
from hotpolicy.robots.servo.timing import Timing
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import ServoSilent

__all__ = ["Counts", "Replies", "ServoBus", "Timing", "sort_reply"]  # with what comes with a bus


class Replies(NamedTuple):
    """What came back, by id, and who did not answer."""

    by_id: Mapping[int, Reply]
    missing: tuple[int, ...]


class ServoBus:
    """The one owner of a port with servos on it. Calls from several threads take turns.

    Every call raises BusLost when the port is gone; `open` may then be called again.
    """

    def __init__(self, port: str, timing: Timing | None = None, protocol: Protocol | None = None):
        timing, self.protocol = timing or Timing(), protocol or Feetech()
        self._port = Port(port, timing.baud)
        self.line = Line(self._port, timing, self.protocol)
        self._silent = Silence(port)
        self._turn = threading.RLock()

    @property
    def port(self) -> str:
        return self._port.name

    @property
    def counts(self) -> Counts:
        return self.line.counts

    @property
    def echo(self) -> bool | None:
        """Whether the adapter repeats what we write; None: not known yet."""
        return self.line.echo

    @property
    def is_open(self) -> bool:
        return self._port.is_open

    def open(self) -> ServoBus:
        """Raises BusBusy when another program holds the port, BusLost when it cannot be opened."""
        with self._turn:
            if not self._port.is_open:
                self._port.open()
                self.line.echo = None
                self._silent.clear()
            return self

    def close(self) -> None:
        with self._turn:
            self._port.close()

    def __enter__(self) -> ServoBus:
        return self.open()

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Questions --------------------------------------------------------------------------------------------------------

    def ping(self, servo: int) -> Reply | None:
        """The servo's answer, which Dynamixels fill with model and firmware; None when it is silent."""
        with self._turn:
            return self._gather(self.protocol.ping(servo))

    def read(self, servo: int, address: int, size: int) -> Reply:
        """`size` bytes from `address`. Raises ServoSilent."""
        return self._ask(self.protocol.read(servo, address, size))

    def write(self, servo: int, address: int, data: bytes) -> int:
        """Write and wait for the answer; the error byte it carries. Raises ServoSilent."""
        return self._ask(self.protocol.write(servo, address, data)).error

    def reg_write(self, servo: int, address: int, data: bytes) -> int:
        """Like `write`, but the servo acts on it at `action`."""
        return self._ask(self.protocol.reg_write(servo, address, data)).error

    def action(self) -> None:
        """All servos do what `reg_write` left with them. Nobody answers."""
        self._tell(self.protocol.action().request)

    def reboot(self, servo: int) -> None:
        """As a power cycle would: torque off, faults cleared. Its answer, if any, is not waited for."""
        self._tell(self.protocol.reboot(servo).request)

    def sync_write(self, address: int, data: Mapping[int, bytes]) -> None:
        """Write to several servos in one packet. Nobody answers, so nobody knows."""
        self._tell(self.protocol.sync_write(address, data).request)

    def sync_read(self, servos: Sequence[int], address: int, size: int) -> Replies:
        """`size` bytes from `address` of each servo, in one question; silent servos are in `missing`."""
        servos = tuple(servos)
        with self._turn:
            until = now() + self.line.timing.budget_ms * 1e-3
            asked = self._speaking(servos) if self._silent else servos
            got = self.line.ask(self.protocol.sync_read(asked, address, size, asked is not servos)) if asked else {}
            if len(got) == len(servos):
                return Replies(got, ())
            got = self._insist(lambda left: self.protocol.sync_read(left, address, size, True), asked, got, until)
            return Replies(got, tuple(servo for servo in servos if servo not in got))

    def scan(self) -> dict[int, int]:
        """Model numbers of all servos that answer, by id. Takes a tenth of a second, with Dynamixels one."""
        with self._turn:
            found = {}
            for servo in sorted(self.line.ask_all()):
                with suppress(ServoSilent):  # what looked like its answer was noise
                    found[servo] = int.from_bytes(self.read(servo, *self.protocol.model).data, "little")
            return found

    # How a question is asked ------------------------------------------------------------------------------------------

    def _ask(self, question: Question) -> Reply:
        (servo,) = question.servos
        with self._turn:
            reply = None
            if servo not in self._silent or self._answers_ping(servo):
                reply = self._gather(question)
        if reply is None:
            raise ServoSilent(f"servo {servo} on {self.port}: expected an answer, none came")
        return reply

    def _gather(self, question: Question) -> Reply | None:
        """The answer to a question to one servo, asked again where it did not come."""
        until = now() + self.line.timing.budget_ms * 1e-3
        got = self._insist(lambda _: question, question.servos, self.line.ask(question), until)
        return got.get(question.servos[0])

    def _insist(
        self,
        question: Callable[[tuple[int, ...]], Question],
        servos: tuple[int, ...],
        got: dict[int, Reply],
        until: float,
    ) -> dict[int, Reply]:
        """Ask those that did not answer again, within the retries and the time of one cycle. Keeps who stays silent."""
        left = servos
        for _ in range(self.line.timing.retries):
            left = tuple(servo for servo in left if servo not in got)
            if not left or now() >= until:
                break
            left = left[1:] + left[:1]  # some servos end a sync read at the first gap: let the gap come last
            self.counts.retries += 1
            got.update(self.line.ask(question(left), until))
        for servo in servos:
            if servo in got:
                self._silent.ended(servo)
            else:
                self._silent.fell(servo)
                self.counts.missed += 1
        return {servo: got[servo] for servo in servos if servo in got}

    def _speaking(self, servos: tuple[int, ...]) -> tuple[int, ...]:
        """Those of `servos` that are worth asking: not the silent ones, until they answer a ping."""
        tried = self._silent.to_try(servos)
        if tried is not None and self._answers_ping(tried):
            self._silent.ended(tried)
        speaking = tuple(servo for servo in servos if servo not in self._silent)
        return speaking if len(speaking) < len(servos) else servos

    def _answers_ping(self, servo: int) -> bool:
        """Whether a silent servo is back. The head of this file says why by a ping."""
        return bool(self.line.ask(self.protocol.ping(servo)))

    def _tell(self, request: bytes) -> None:
        with self._turn:
            self.line.tell(request)
