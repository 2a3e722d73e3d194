"""The line to the servos: one question, and the answers that belong to it among whatever else comes in: late answers,
noise, echoes, strangers. Knows no repetitions, and nothing of who was silent before."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from hotpolicy.robots.servo.counts import Counts
from hotpolicy.robots.servo.echo import sort_reply
from hotpolicy.robots.servo.port import Port
from hotpolicy.robots.servo.ports import holders
from hotpolicy.robots.servo.protocol import Protocol, Question, Reply
from hotpolicy.robots.servo.timing import Timing
from hotpolicy.runtime.clock import now

log = logging.getLogger(__name__)

STRANGERS = 5  # of so many strange answers one is reported


class Line:
    """Calls must take turns. Each raises BusLost when the port is gone."""

    def __init__(self, port: Port, timing: Timing, protocol: Protocol):
        self.port = port
        self.timing = timing
        self.protocol = protocol
        self.counts = Counts()
        self.echo: bool | None = None  # whether the adapter repeats what we write; None: not known yet

    def tell(self, request: bytes) -> None:
        """Write what nobody answers."""
        if self.echo is False:
            self.port.tell(request)  # nothing will be read, so nothing need be thrown away
            return
        self.port.ask(request)
        if self.echo:
            self.port.receive(len(request), self.timing.wait_s(len(request), 0))

    def ask(self, question: Question, limit: float | None = None) -> dict[int, Reply]:
        """One question and its answers, read until all are there, or time (`limit`, monotonic s, at the latest) is up.

        What is expected is read at once; only when it is not exactly that the line looks closer.
        """
        request, servos, _, expected = question
        wait = self.timing.wait_s(2 * len(request) + expected, len(servos))
        until = now() + wait
        if limit is not None and limit < until:
            until, wait = limit, max(limit - until + wait, 0.0)
        self.counts.questions += 1
        lacking, echoed = expected + (len(request) if self.echo else 0), False
        raw = more = self.port.exchange(request, lacking, wait)
        while True:
            if self.echo is False:
                answers, lacking = self.protocol.sort(question, raw)
            else:
                answers, lacking, echoed = sort_reply(raw, question, self.protocol, self.echo)
            if not lacking or not more:
                break
            more = self.port.receive(lacking, max(until - now(), 0.0))
            raw += more
        if lacking:
            self.counts.damaged += bool(raw)
        elif echoed is not self.echo:
            self.echo = echoed
        if raw and (lacking or len(raw) != expected):
            self._look_for_strangers(raw, answers)
        return answers

    def ask_all(self) -> set[int]:
        """Who answers a ping to all, as far as it can be told from noise."""
        question = self.protocol.ping_all()
        wait = self.timing.wait_s(question.expected, 0) + self.protocol.scan_s
        return self.protocol.found(self.port.exchange(question.request, question.expected, wait))

    def _look_for_strangers(self, raw: bytes, answers: Mapping[int, Reply]) -> None:
        """Whole answers that were not asked for: late ones of our own now and then, a second master's all the time."""
        if self.echo or not self.protocol.found(raw) - answers.keys():
            return
        self.counts.strange += 1
        if self.counts.strange % STRANGERS == 0:
            log.warning(
                "%s: %d times now answers came that were not asked for: another program or controller is on this bus"
                " (%s), or two servos have the same id",
                self.port.name,
                self.counts.strange,
                ", ".join(holders(self.port.name)) or "none seen on this machine",
            )
