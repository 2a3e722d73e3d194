"""The policy server: a thread that computes, one that receives meanwhile, and one for operators' commands.

Whoever receives never calls a policy's `infer` or an operator's command, so a greeting, a ping or a new robot is
answered while a model computes or a version loads (see reception.py). Each thread sends its own answers (see
router.py).
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from hotpolicy.runtime.clock import Deadline, now
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.contracts import Slot
from hotpolicy.runtime.envelope import one_line
from hotpolicy.runtime.errors import EngineFault
from hotpolicy.runtime.fronts.operators import Control
from hotpolicy.runtime.metrics import Meter, resident_bytes
from hotpolicy.runtime.scheduler import Scheduler
from hotpolicy.runtime.serving.desk import Desk
from hotpolicy.runtime.serving.engine_thread import EngineThread
from hotpolicy.runtime.serving.front_doors import FrontDoors
from hotpolicy.runtime.serving.inference import Inference
from hotpolicy.runtime.serving.life import Life, State
from hotpolicy.runtime.serving.notify import Notifier
from hotpolicy.runtime.serving.prometheus import Exposition
from hotpolicy.runtime.serving.reception import Reception
from hotpolicy.runtime.serving.run_queue import RunQueue
from hotpolicy.runtime.serving.waiting import WaitingRoom

logger = logging.getLogger(__name__)

# How long a thread may keep the interpreter from another that wants it. Python's own 5 ms let a version that loads hold
# up the model that serves: a chunk of the nano policy took 117 ms beside a busy thread, with this 55.
SWITCH_S = 0.0005


class PolicyServer:
    """Serves a slot's live policy to robots, and its control to operators.

    `start` binds and returns; `wait_ready` returns after the warm-up. `stop` drains. Also a context manager.
    """

    def __init__(self, config: ServeConfig, slot: Slot, control: Control, notifier: Notifier | None = None):
        self.config = config
        self.endpoint, self.control_endpoint = config.endpoint, config.control  # with their ports once started
        self.gr00t_endpoint, self.openpi_port = "", 0  # of other runtimes' clients, likewise; empty: off
        self.meter = Meter()
        self._notifier = notifier or Notifier()
        self._life = Life(self._told)
        self._slot, self._control = slot, control
        scheduler = Scheduler(config.max_batch, config.batch_window_ms / 1000, config.max_sessions)
        self._reception = Reception(self.meter)
        self._room = WaitingRoom(scheduler, self.meter, self._reception.wake)
        self._run_queue = RunQueue()
        self._inference = Inference(self._room, slot, self.meter, self._reception, self._run_queue)
        self._desk = Desk(config, slot, self._room, self._inference, self.meter, self._life, self.stats)
        self._engine = EngineThread(config, slot, self._inference, self._life)
        self._look_s = min(1.0, self._notifier.watchdog_s / 3 or 1.0)  # how often the deputy looks at least
        self._looked = 0.0
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._cleanup = contextlib.ExitStack()
        self._started_at = now()

    @property
    def state(self) -> State:
        return self._life.state

    @property
    def failure(self) -> str:
        """Why the state is `failed`; empty otherwise."""
        return self._life.failure

    @property
    def stuck(self) -> bool:
        """Whether a thread was left behind in a computation: then the process may not be able to end by itself."""
        return self._engine.stuck

    # Life.

    def start(self) -> None:
        """Bind and start the threads. Raises ConfigError, and leaves nothing behind, when an endpoint is taken."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._run_queue.close)
            self._doors = doors = FrontDoors(self._desk, self._control, self._reception)
            stack.callback(doors.close)
            if self.config.metrics_port is not None:
                self._exposition = Exposition(self.config.metrics_port, self.stats)
                stack.callback(self._exposition.close)
            self._cleanup = stack.pop_all()
        self.endpoint, self.control_endpoint = doors.endpoint, doors.control_endpoint
        self.gr00t_endpoint, self.openpi_port = doors.gr00t_endpoint, doors.openpi_port
        for name, target in (("receive", self._receive), ("command", doors.operators.run)):
            thread = threading.Thread(target=self._guarded, args=(target,), name=f"hotpolicy-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._engine.start()

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Return once warmed up. Raises EngineFault when the warm-up failed or took longer."""
        if not self._life.warm.wait(timeout_s):
            raise EngineFault(f"the policy was not warm after {timeout_s:g} s")
        if self.state == "failed":
            raise EngineFault(self.failure)

    def run(self) -> None:
        """Serve in the foreground until SIGTERM, SIGINT or a `shutdown` command, then drain. Ctrl-C twice ends at once.

        Raises ConfigError from `start`, and EngineFault when the server failed by itself.
        """

        def stop(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGINT and self._life.ended.is_set():
                raise KeyboardInterrupt
            self._life.ended.set()

        kept = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        try:
            self.start()
            while not self._life.ended.wait(1.0):
                pass
            self.stop()
        finally:
            sys.setswitchinterval(interval)
            for number, handler in kept.items():
                signal.signal(number, handler)
        if self.failure:
            raise EngineFault(self.failure)

    def stop(self) -> None:
        """Refuse new requests, finish those that wait (at most `drain_s`), answer the rest `busy`, close."""
        if not self._threads:
            return
        if self._life.enter("draining"):
            drained = Deadline.after(self.config.drain_s)
            while not self._room.idle() and not drained.passed():
                self._closing.wait(0.005)
        deputy, control_thread = self._threads
        self._engine.stop()
        self._doors.operators.stop()
        control_thread.join(1.0)
        self._closing.set()
        self._reception.rouse()
        deputy.join()
        self._threads = []
        self._cleanup.close()
        self._life.ended.set()
        self._life.enter("stopped")

    def __enter__(self) -> PolicyServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stats(self) -> dict[str, Any]:
        """What `stats` answers: plain values only."""
        roles = {role: getattr(self._slot, role, None) for role in ("live", "previous", "staged")}
        return {
            "state": self.state,
            "restarts": self._life.restarts,
            "uptime_s": now() - self._started_at,
            "resident_bytes": resident_bytes(),
            "counts": self.meter.counts(),
            "fronts": self._doors.counts(),
            "latency_ms": self.meter.latency_ms(),
            "unsent": self._doors.unsent,
            "waiting": len(self._room),
            "sessions": self._room.active_sessions(),
            "swap_stall_ms": self._inference.stall.figures(),
            "versions": {role: policy.version if policy else None for role, policy in roles.items()},
            "slot": self._slot.figures(),
        }

    # The threads.

    def _guarded(self, target: Callable[[], None]) -> None:
        """A thread of ours that ends by an error takes the server to `failed`, loudly."""
        try:
            target()
        except Exception as error:
            logger.exception("%s ended", threading.current_thread().name)
            self._life.fail(f"{threading.current_thread().name}: {one_line(str(error))}")

    def _receive(self) -> None:
        """The deputy's: he also answers what is too late, and looks whether everybody is well."""
        while not self._closing.is_set():
            expiry = self._room.expire()
            if now() - self._looked >= self._look_s:
                self._look()
            longest_s = self._look_s if expiry is None else max(0.0, min(self._look_s, expiry - now()))
            self._reception.stand_in(longest_s)

    def _look(self) -> None:
        """The deputy lives, as it comes here; the thread that computes lives, as it goes on. So both are proven when
        the service manager is told, and an inference may take longer than its watchdog's interval."""
        self._looked = now()
        self._reception.undisturbed(self._doors.robots.tidy)
        self._engine.look(self._looked)
        self._run_queue.follow()
        if self._life.state != "failed":
            self._notifier.alive()

    def _told(self, state: State, text: str) -> None:
        """Each state is logged, and the service manager told, by the thread that entered it."""
        if state == "ready":
            text = f"{self._slot.live.version} on {self.endpoint}"
        logger.log(logging.ERROR if state == "failed" else logging.INFO, "%s%s", state, text and f": {text}")
        self._notifier.state(state, text)
