"""Where actions come from: a person, a script, a policy server, or a policy a person can take over from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from hotpolicy.robots.operators import Beginning, Controlling, Deciding, Decision, Following, Pausing
from hotpolicy.robots.robot import Operator
from hotpolicy.runtime.chunks import ChunkBuffer
from hotpolicy.runtime.client import PolicyClient
from hotpolicy.runtime.errors import ServeError
from hotpolicy.runtime.messages import ActionChunk, Observation


@dataclass(frozen=True, slots=True)
class Wish:
    """What a source wants of the arm in this tick."""

    action: np.ndarray | None  # (joints,) absolute targets, units of the RobotSpec; None: hold
    version: str | None = None  # policy bundle that asked for it
    intervention: bool = False  # a person took over from a policy
    pause: bool = False  # a person has halted everything: hold, and let nobody learn from this tick


HOLD = Wish(None)


class Source(Protocol):
    """One action per tick. It never makes the loop wait, unless time stands still meanwhile."""

    def begin(self, task: str) -> None: ...  # a new episode: what was planned in the old one is forgotten

    def act(self, observation: Observation) -> Wish | None: ...  # None: the episode is over

    def decision(self) -> Decision: ...  # what to do with the episode that is over


@runtime_checkable
class Replanning(Protocol):
    """A source that can forget its plan within an episode, because somebody else has moved the arm."""

    def replan(self) -> None: ...


class OperatorSource:
    """A person or a script acts."""

    def __init__(self, operator: Operator):
        self.operator = operator

    def begin(self, task: str) -> None:
        _begin(self.operator, task)

    def act(self, observation: Observation) -> Wish | None:
        action = self.operator.act(observation)
        return None if action is None else Wish(action)

    def decision(self) -> Decision:
        return self.operator.decision if isinstance(self.operator, Deciding) else "done"


class PolicySource:
    """A policy server acts, asked ahead of need, as the buffer's chunking says. No fresh action (server slow, lost or
    restarting): hold."""

    def __init__(self, client: PolicyClient, buffer: ChunkBuffer, deadline_ms: float | None = None):
        """`deadline_ms`: after which an answer is of no use; None: the client's own."""
        self.client = client
        self.buffer = buffer
        self.failures: Counter[str] = Counter()  # answers that were none, by error code
        self._deadline_ms = deadline_ms

    def begin(self, task: str) -> None:
        self.client.new_episode()
        self.replan()

    def replan(self) -> None:
        self.buffer.clear()

    def act(self, observation: Observation) -> Wish:
        """Raises BadRequest when the server says that this robot does not fit its policy."""
        try:
            if (chunk := self.client.poll()) is not None:
                self.buffer.put(chunk)
        except ServeError as error:
            self.failures[error.code] += 1
            self.buffer.give_up()
        if self.buffer.should_ask():
            try:
                self.buffer.asked(self.client.ask(observation, self._deadline_ms, self.buffer.rtc()))
            except ServeError as error:
                self.failures[error.code] += 1
        action = self.buffer.next()
        if action is None or self.buffer.chunk is None:
            return HOLD
        return Wish(action, self.buffer.chunk.version)

    def decision(self) -> Decision:
        return "done"


class SteppedPolicySource:
    """A policy server acts and the loop waits for it: for simulators in lock-step, where time stands still meanwhile.

    Executes `replan` actions of each chunk, so that a run depends on seeds alone, not on the speed of the machine.
    """

    def __init__(self, client: PolicyClient, replan: int, deadline_ms: float | None = None):
        self.client = client
        self._replan = replan
        self.failures: Counter[str] = Counter()
        self._deadline_ms = deadline_ms
        self._chunk: ActionChunk | None = None
        self._used = 0  # actions of it

    def begin(self, task: str) -> None:
        self.client.new_episode()
        self.replan()

    def replan(self) -> None:
        self._chunk = None

    def act(self, observation: Observation) -> Wish:
        """Raises BadRequest when the server says that this robot does not fit its policy."""
        if self._chunk is None or self._used >= min(self._replan, len(self._chunk.actions)):
            try:
                self._chunk, self._used = self.client.infer(observation, self._deadline_ms), 0
            except ServeError as error:
                self.failures[error.code] += 1
                self._chunk = None
                return HOLD
        self._used += 1
        return Wish(self._chunk.actions[self._used - 1], self._chunk.version)

    def decision(self) -> Decision:
        return "done"


class SharedSource:
    """A policy acts until a person takes over, and again once they hand back; their actions count as interventions.
    A pause holds the arm; whoever goes on starts from there."""

    def __init__(self, policy: Source, operator: Operator):
        self.policy = policy
        self.operator = operator
        self._task = ""
        self._fresh = True  # what the policy has planned still holds

    def begin(self, task: str) -> None:
        self._task, self._fresh = task, True
        _begin(self.operator, task)
        self.policy.begin(task)

    def act(self, observation: Observation) -> Wish | None:
        target = self.operator.act(observation)  # always: it is how keys are read
        if target is None:
            return None
        if isinstance(self.operator, Pausing) and self.operator.paused:
            self._fresh = False
            return Wish(None, pause=True)
        if isinstance(self.operator, Controlling) and self.operator.in_control:
            self._fresh = False
            return Wish(target, intervention=True)
        if not self._fresh:
            self._forget()
            self._fresh = True
        if isinstance(self.operator, Following):
            self.operator.follow(observation.state)
        return self.policy.act(observation)

    def _forget(self) -> None:
        """What the policy planned before the correction is out of date. It is the same episode: no other version may
        come in."""
        if isinstance(self.policy, Replanning):
            self.policy.replan()
        else:
            self.policy.begin(self._task)

    def decision(self) -> Decision:
        return self.operator.decision if isinstance(self.operator, Deciding) else "done"


def _begin(operator: Operator, task: str) -> None:
    if isinstance(operator, Beginning):
        operator.begin(task)
