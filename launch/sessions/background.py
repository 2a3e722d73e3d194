"""Beside the person in a session: a tuning process, and commands to the server; nobody waits for either."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from hotpolicy.launch.ending import TERMINATED
from hotpolicy.launch.processes import Child
from hotpolicy.launch.sessions.plan import SessionPlan
from hotpolicy.launch.sessions.state import Job
from hotpolicy.launch.versions import connect
from hotpolicy.runtime.client import ControlClient
from hotpolicy.runtime.clock import Deadline
from hotpolicy.runtime.errors import Busy, HotpolicyError, ServerLost, TuningError

Event = dict[str, Any]
Reply = dict[str, Any]
Result = TypeVar("Result")
SILENCE_S = 600.0  # a tuning process that says nothing for so long is lost
PATIENCE = 3  # times a job's process may be killed, or a server lost, before a person has to look


class Tuner:
    """One `hotpolicy finetune` process at a time. It ends when this process does, however that happens."""

    def __init__(self, plan: SessionPlan, trials: int):
        self.plan, self.trials = plan, trials
        self._child: Child | None = None
        self._read = 0  # lines
        self._silent = Deadline.after(SILENCE_S)

    @property
    def running(self) -> bool:
        return self._child is not None

    def start(self, job: Job) -> None:
        self._child = Child("tuning", self._arguments(job), self.plan.folder / "tuning.log", attached=True)
        self._read, self._silent = 0, Deadline.after(SILENCE_S)

    def poll(self) -> list[Event]:
        """What it has said since the last time. The last is `sealed`, or `lost` for a process that was killed. Raises
        TuningError with its last words when it ended for another reason."""
        child = self._child
        if child is None:
            return []
        ended = child.ended  # before its lines are read: then none is missed
        lines = child.lines[self._read :]
        self._read += len(lines)
        if lines:
            self._silent = Deadline.after(SILENCE_S)
        events = [json.loads(line) for line in lines]
        over = ended or _sealed(events) or self._silent.passed()
        return self._end(events) if over else events

    def stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.stop()

    def _end(self, events: list[Event]) -> list[Event]:
        child = self._child
        assert child is not None
        if _sealed(events):
            child.wait(60)  # it is on its way out
            self.stop()
            return events
        code = child.process.poll()
        words = child.last_words()
        self.stop()
        if code is not None and code >= 0 and code != TERMINATED:  # it was not killed: it would end so again
            raise TuningError(f"tuning ended early: {words}")
        return [*events, {"event": "lost", "words": words}]

    def _arguments(self, job: Job) -> Sequence[str]:
        plan, tuning, gate = self.plan, self.plan.tuning, self.plan.gate
        words: list[object] = [
            "finetune", plan.folder / "dataset", "--store", plan.store, "--base", job.base,
            "--until", job.until, "--since", job.since, "--seed", job.seed, "--job", job.name,
            "--strategy", tuning.strategy, "--steps", tuning.steps, "--replay", tuning.replay, "--fresh", tuning.fresh,
            "--threads", tuning.threads, "--save-every", tuning.save_every,
            "--trials", self.trials, "--success", gate.success, "--old-error", gate.old_error, "--attached", "--json",
        ]  # fmt: skip
        for name, value in (("--rate", tuning.rate), ("--minutes", tuning.minutes)):
            words += [] if value is None else [name, value]
        for path in tuning.replay_from:
            words += ["--replay-from", path]
        words += ["--carry"] if tuning.carry else []
        return [str(word) for word in words]


class Commands:
    """Swaps and rollbacks, each in its turn, in a thread of their own. A request that was cut short by a kill may be
    repeated: the server knows it by its id."""

    def __init__(self, plan: SessionPlan):
        self.plan = plan
        self._thread = ThreadPoolExecutor(1, "commands")

    def publish(self, version: str, base: str | None, request_id: str) -> Future[str]:
        """Make it live, if the version it was judged against still is. The result: why not, or nothing."""
        return self._thread.submit(self._patiently, lambda client: _publish(client, version, base, request_id))

    def roll_back(self) -> Future[Reply]:
        """To the version before. The result: the server's reply, with `version`, which is live now, and `before`."""
        request_id = uuid.uuid4().hex  # a key that is pressed again means it again
        return self._thread.submit(self._patiently, lambda client: client.rollback(request_id=request_id, by="session"))

    def live(self) -> str:
        """Waits for it."""
        return str(self._patiently(lambda client: client.status())["live"])

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _patiently(self, do: Callable[[ControlClient], Result]) -> Result:
        for left in reversed(range(PATIENCE)):
            try:
                with self._connect() as client:
                    return do(client)
            except (ServerLost, Busy):
                if not left:
                    raise
        raise AssertionError

    def _connect(self) -> ControlClient:
        return connect(self.plan.control, self.plan.key, self.plan.server_key)


def _publish(client: ControlClient, version: str, base: str | None, request_id: str) -> str:
    live = client.status()["live"]
    done = any(change["request_id"] == request_id for change in client.history()["changes"])
    if live == version or done:
        return ""
    if base is not None and live != base:
        return f"it was judged against {base}, and {live} is live now"
    try:
        client.swap(version, request_id=request_id, by="session")
    except (ServerLost, Busy):
        raise
    except HotpolicyError as error:
        return str(error)
    return ""


def _sealed(events: Sequence[Event]) -> bool:
    return any(event["event"] == "sealed" for event in events)
