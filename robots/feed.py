"""A thread between the control loop and whoever watches it, so that neither a disk nor a window can delay the arm."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Literal, Protocol

from hotpolicy.runtime.clock import Deadline
from hotpolicy.runtime.errors import HotpolicyError, RobotError
from hotpolicy.runtime.messages import Step

log = logging.getLogger(__name__)

WhenFull = Literal["fail", "wait", "drop"]


class Subscriber(Protocol):
    """Told what the loop does: a recorder, a viewer. `finetune.recorder.Recorder` is one."""

    def begin(self, task: str) -> None: ...  # an episode starts

    def step(self, step: Step) -> None: ...  # a tick of it; the arrays are the subscriber's to keep, not to change

    def save(self, success: bool | None = None) -> object: ...  # it is over and worth keeping

    def discard(self) -> None: ...  # it is over and is not


VIEWER_S = 1.0  # time for a viewer to end
FLUSH_S = 600.0  # time for a recorder to catch up with what it has on disk


class Feed:
    """Hands events to a subscriber in its own thread, in order. The loop's side never waits for it.

    `when_full` says what happens when the subscriber falls `room_mb` of images behind:
    "fail": the loop ends the episode with an error, for a recorder on a real robot, where a gap would be a lie;
    "wait": the loop waits, for a recorder in a simulation, where time stands still meanwhile;
    "drop": steps are dropped and counted, for a viewer. A viewer that fails is logged and told nothing more.
    """

    def __init__(self, subscriber: Subscriber, when_full: WhenFull = "fail", room_mb: float = 256.0):
        self.subscriber = subscriber
        self.when_full: WhenFull = when_full
        self.dropped = 0  # steps
        self._room = room_mb * 1e6  # bytes
        self._events: deque[tuple[Callable[[], object], int]] = deque()  # what to call, bytes it holds
        self._held = 0  # bytes waiting
        self._busy = False
        self._closed = False
        self._failure: HotpolicyError | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"feed-{type(subscriber).__name__}", daemon=True)
        self._thread.start()

    def begin(self, task: str) -> None:
        self._put(lambda: self.subscriber.begin(task))

    def step(self, step: Step) -> None:
        """Raises the subscriber's own error (RobotError when it is none of hotpolicy's), or RobotError when it has
        fallen behind (not for "drop")."""
        size = sum(image.nbytes for image in step.observation.images.values())
        with self._changed:
            if self.when_full == "wait":
                self._changed.wait_for(lambda: self._has_room(size) or self._failure)
            elif not self._has_room(size):
                if self.when_full == "fail":
                    raise RobotError(
                        f"{type(self.subscriber).__name__} is {self._held / 1e6:.0f} MB behind the robot: expected it "
                        "to keep up (fewer or smaller cameras, a lower rate, a faster disk)"
                    )
                self.dropped += 1
                return
        self._put(lambda: self.subscriber.step(step), size)

    def save(self, success: bool | None = None) -> None:
        """Ask for the episode to be kept; `flush` returns once it is."""
        self._put(lambda: self.subscriber.save(success))

    def discard(self) -> None:
        """Forget the episode. Never raises: it is what one does after an error."""
        with self._changed:
            if self.when_full != "drop":
                self._failure = None
            self._add(self.subscriber.discard, 0)

    def flush(self, timeout_s: float = FLUSH_S) -> None:
        """Return when everything handed over so far is done. Raises the subscriber's error, or RobotError after
        `timeout_s`."""
        deadline = Deadline.after(timeout_s)
        with self._changed:
            if not self._changed.wait_for(lambda: not self._events and not self._busy, deadline.remaining()):
                raise RobotError(f"{type(self.subscriber).__name__}: not done after {timeout_s:g} s")
            self._raise_failure()

    def close(self, timeout_s: float = FLUSH_S) -> None:
        """Do what is left, then end the thread; a viewer that hangs is not waited for. The subscriber stays
        open: it belongs to whoever made it."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(min(timeout_s, VIEWER_S) if self.when_full == "drop" else timeout_s)

    def _put(self, call: Callable[[], object], size: int = 0) -> None:
        with self._changed:
            self._raise_failure()
            if self._failure is None:
                self._add(call, size)

    def _add(self, call: Callable[[], object], size: int) -> None:
        self._events.append((call, size))
        self._held += size
        self._changed.notify_all()

    def _has_room(self, size: int) -> bool:
        return not self._events or self._held + size <= self._room

    def _raise_failure(self) -> None:
        if self._failure is not None and self.when_full != "drop":
            raise self._failure

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._events or self._closed)
                if not self._events:
                    return
                call, size = self._events.popleft()
                self._busy = True
            failure = self._do(call)
            with self._changed:
                self._busy = False
                self._held -= size
                if failure is not None:
                    self._give_up(failure)
                self._changed.notify_all()

    def _give_up(self, failure: HotpolicyError) -> None:
        """What waits behind a failed event is of the same episode: nothing of it is of use but its end."""
        discarded = any(call == self.subscriber.discard for call, _ in self._events)
        self._events.clear()
        self._held = 0
        if discarded and self.when_full != "drop":  # the loop had given the episode up before
            self._add(self.subscriber.discard, 0)
        else:
            self._failure = failure

    def _do(self, call: Callable[[], object]) -> HotpolicyError | None:
        failure: HotpolicyError
        try:
            call()
        except HotpolicyError as error:
            failure = error
        except Exception as error:  # noqa: BLE001  # it must not end the thread: the loop would wait for it
            text = " ".join(str(error).split())
            failure = RobotError(f"{type(self.subscriber).__name__} failed: {type(error).__name__}: {text}")
            failure.__cause__ = error
        else:
            return None
        log.error("told to %s: %s", type(self.subscriber).__name__, failure)
        return failure
