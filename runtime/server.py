"""The policy server: its sockets in one thread, the model in another, operators' commands in a third.

The socket thread receives, and each socket's front checks and admits. It never calls a policy's `infer` or an
operator's command, so a greeting, a ping or a new robot is answered while a model computes or a version loads. Each
thread sends its own answers (see router.py).
"""

from __future__ import annotations

import contextlib
import logging
import select
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import zmq

from hotpolicy.runtime.bell import Bell
from hotpolicy.runtime.clock import Deadline, now
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.desk import Desk
from hotpolicy.runtime.doorman import Door, Doorman
from hotpolicy.runtime.envelope import one_line
from hotpolicy.runtime.errors import EngineFault, ServerFailed
from hotpolicy.runtime.fronts import Front
from hotpolicy.runtime.fronts.gr00t import Gr00t
from hotpolicy.runtime.fronts.openpi import Openpi
from hotpolicy.runtime.fronts.operators import Control, Operators
from hotpolicy.runtime.fronts.robots import Robots
from hotpolicy.runtime.inference import Inference, Slot
from hotpolicy.runtime.keys import ServerKeys
from hotpolicy.runtime.life import Life, State
from hotpolicy.runtime.metrics import Meter, resident_bytes
from hotpolicy.runtime.notify import Notifier
from hotpolicy.runtime.prometheus import Exposition
from hotpolicy.runtime.pulse import Pulse
from hotpolicy.runtime.router import Router
from hotpolicy.runtime.scheduler import Scheduler
from hotpolicy.runtime.wire import COMMAND_CAPS

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
        self._inference = Inference(scheduler, slot, self.meter, self._wake)
        self._desk = Desk(config, slot, self._inference, self.meter, self._life, self.stats)
        self._pulse = Pulse()  # of the inference thread
        self._look_s = min(1.0, self._notifier.watchdog_s / 3 or 1.0)  # how often the socket thread looks at least
        self._looked = 0.0
        self._crashing = threading.Lock()
        self._turn = 0  # inference threads that crashed
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._left_behind: list[threading.Thread] = []
        self._cleanup = contextlib.ExitStack()
        self._exposition: Exposition | None = None
        self._fronts: list[Front] = []
        self._gr00t: Gr00t | None = None
        self._openpi: Openpi | None = None
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
        return any(thread.is_alive() for thread in self._left_behind)

    # Life.

    def start(self) -> None:
        """Bind and start the threads. Raises ConfigError, and leaves nothing behind, when an endpoint is taken."""
        with self._cleanup as stack:
            self._bell = Bell()
            stack.callback(self._bell.close)
            context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            stack.callback(context.term)
            doorman = Doorman(context, ServerKeys.load(self.config.keys)) if self.config.keys else None
            if doorman:
                stack.callback(doorman.close)
            self._robots = Robots(self._socket(stack, context, "robots", doorman), self._desk)
            self._operators = Operators(self._socket(stack, context, "operators", doorman), self._desk, self._control)
            self.endpoint = self._robots.router.bind("endpoint", self.config.endpoint)
            self.control_endpoint = self._operators.router.bind("control", self.config.control)
            self._fronts = [self._operators, self._robots]
            if self.config.gr00t:
                self._gr00t = Gr00t(self._socket(stack, context), self._desk, self.config.gr00t)
                self.gr00t_endpoint = self._gr00t.router.bind("gr00t", self.config.gr00t.endpoint)
                self._fronts.append(self._gr00t)
            if self.config.openpi:
                self._openpi = Openpi(self._desk, self.config.openpi)
                self.openpi_port = self._openpi.start()
                stack.callback(self._openpi.close)
            if self.config.metrics_port is not None:
                self._exposition = Exposition(self.config.metrics_port, self.stats)
                stack.callback(self._exposition.close)
            self._cleanup = stack.pop_all()
        self._inference_thread = threading.Thread(target=self._infer, args=(0,), name="hotpolicy-infer", daemon=True)
        for name, target in (("receive", self._receive), ("command", self._operators.run)):
            thread = threading.Thread(target=self._guarded, args=(target,), name=f"hotpolicy-{name}", daemon=True)
            self._threads.append(thread)
        for thread in (*self._threads, self._inference_thread):
            thread.start()

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
            while not self._inference.idle() and not drained.passed():
                self._closing.wait(0.005)
        socket_thread, control_thread = self._threads
        self._inference.stop()
        self._inference_thread.join(1.0)  # a model that computes for longer is left behind: its thread is a daemon
        self._left_behind.append(self._inference_thread)
        self._operators.stop()
        control_thread.join(1.0)
        self._closing.set()
        self._bell.ring()
        socket_thread.join()
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
        fronts = {"gr00t": self._gr00t, "openpi": self._openpi}
        return {
            "state": self.state,
            "restarts": self._life.restarts,
            "uptime_s": now() - self._started_at,
            "resident_bytes": resident_bytes(),
            "counts": self.meter.counts(),
            "fronts": {name: front.meter.counts() for name, front in fronts.items() if front},
            "latency_ms": self.meter.latency_ms(),
            "unsent": sum(front.router.dropped for front in self._fronts),
            "waiting": self._inference.waiting(),
            "sessions": self._inference.active_sessions(),
            "swap_stall_ms": dict(self._inference.swap_stall_ms),
            "versions": {role: policy.version if policy else None for role, policy in roles.items()},
            "slot": self._slot.figures(),
        }

    # The threads.

    def _socket(
        self,
        stack: contextlib.ExitStack,
        context: zmq.Context[zmq.Socket[bytes]],
        door: Door = "robots",
        doorman: Doorman | None = None,
    ) -> Router:
        caps = COMMAND_CAPS if door == "operators" else self.config.caps
        router = Router(context, caps, self._bell, door, doorman)
        stack.callback(router.close)
        return router

    def _wake(self) -> None:
        self._bell.ring()

    def _guarded(self, target: Callable[[], None]) -> None:
        """A thread of ours that ends by an error takes the server to `failed`, loudly."""
        try:
            target()
        except Exception as error:
            logger.exception("%s ended", threading.current_thread().name)
            self._life.fail(f"{threading.current_thread().name}: {one_line(str(error))}")

    def _receive(self) -> None:
        fronts = {front.router.fd: front for front in self._fronts}
        poller = select.poll()
        for descriptor in (self._bell.fd, *fronts):
            poller.register(descriptor, select.POLLIN)
        awake = set(fronts)  # descriptors of sockets that may have a message
        while not self._closing.is_set():
            awake = {descriptor for descriptor in awake if self._take(fronts[descriptor])}
            expiry = self._inference.expire()
            if now() - self._looked >= self._look_s:
                self._look()
            if not awake:
                awake = {descriptor for descriptor, _ in poller.poll(_until(expiry, self._look_s))}
                if self._bell.fd in awake:
                    self._bell.silence()
                    awake = set(fronts)

    def _take(self, front: Front) -> bool:
        """Receive one message of this socket, then let the others have their turn. Whether there was one."""
        received = front.router.receive()
        if received is None:
            return False
        peer, frames = received
        if frames:
            self.meter.count("received")
            front.handle(peer, frames)
        return True

    def _look(self) -> None:
        """The socket thread lives, as it comes here; the inference thread lives, as it goes on. So both are proven when
        the service manager is told, and an inference may take longer than its watchdog's interval."""
        self._looked = now()
        self._robots.tidy()
        turn, computing = self._turn, self._life.state in ("ready", "draining")
        longest_s = self.config.longest_inference_s if computing else self.config.longest_load_s
        if self._pulse.look(self._inference.progress, self._looked) > longest_s:
            what = "one batch computed" if computing else "the version loaded or warmed up"
            self._crashed(turn, f"{what} for longer than {longest_s:g} s")
        elif self._life.state != "failed":
            self._notifier.alive()

    def _told(self, state: State, text: str) -> None:
        """Each state is logged, and the service manager told, by the thread that entered it."""
        if state == "ready":
            text = f"{self._slot.live.version} on {self.endpoint}"
        logger.log(logging.ERROR if state == "failed" else logging.INFO, "%s%s", state, text and f": {text}")
        self._notifier.state(state, text)

    # The inference thread.

    def _infer(self, turn: int) -> None:
        """Whatever ends this thread is a crash of the engine: a policy that fails for a request does not."""
        try:
            if turn:
                logger.warning("the engine is restarted: version %s is loaded", self._slot.reload())
            else:
                self._life.enter("warming", self._slot.live.version)
            self._inference.progress += 1
            self._inference.warm_up()
            self._inference.progress += 1
            if turn == self._turn:
                self._life.enter("ready")
                self._inference.run()
        except BaseException as error:
            if turn == self._turn:
                logger.exception("the inference thread ended")
            self._crashed(turn, one_line(f"{type(error).__name__}: {error}"))

    def _crashed(self, turn: int, reason: str) -> None:
        """Any thread: the inference thread of this turn is dead or stuck. One that is stuck cannot be ended in a living
        process: it is left behind with its memory, what it may still compute is dropped, and a new one begins with
        the version loaded anew. That is done once; what crashes again is broken deeper, and ends the process."""
        with self._crashing:
            if turn != self._turn:
                return
            self._turn += 1
            self._left_behind.append(self._inference_thread)
            again = self._life.restart(reason)
            if not again:
                self._life.fail(f"the engine crashed: {reason}")
            fault = EngineFault if again else ServerFailed
            self._inference.abandon(fault(f"the engine crashed: {reason}"))
            if again:
                logger.error("the engine crashed and is restarted: %s", reason)
                self._pulse = Pulse()
                name = f"hotpolicy-infer-{self._turn}"
                self._inference_thread = threading.Thread(
                    target=self._infer, args=(self._turn,), name=name, daemon=True
                )
                self._inference_thread.start()


def _until(expiry: float | None, longest_s: float) -> int:
    """Milliseconds to poll: until the next request expires, rounded up; at most so long."""
    longest = int(1000 * longest_s)
    return longest if expiry is None else max(0, min(longest, int(1000 * (expiry - now())) + 1))
