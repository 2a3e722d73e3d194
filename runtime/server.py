"""The policy server: ROUTER sockets in one thread, the model in another, operators' commands in a third.

The socket thread decodes, checks, admits and forwards. It never calls a policy's `infer` or an operator's command, so
a greeting, a ping or a new robot is answered while a model computes or a version loads.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any, Literal, Protocol

import zmq

from hotpolicy.runtime import endpoint as endpoints
from hotpolicy.runtime import envelope, wire
from hotpolicy.runtime.clock import Deadline, now
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.errors import BadRequest, Busy, ConfigError, EngineFault, HotpolicyError
from hotpolicy.runtime.inference import Inference, Outcome, Slot
from hotpolicy.runtime.metrics import Exposition, Meter
from hotpolicy.runtime.scheduler import Scheduler, Ticket
from hotpolicy.runtime.wire import Message

logger = logging.getLogger(__name__)

State = Literal["starting", "warming", "ready", "draining", "failed", "stopped"]
CONTROL_VERBS = ("stage", "swap", "promote", "rollback", "versions", "status", "history")
BURST = 64  # messages read from one socket before the others get their turn
COMMANDS = 64  # operators' commands that may wait
SOCKET_THREAD = "hotpolicy-socket"
BACKLOG = 256  # messages libzmq may hold for one peer, each way


class Control(Protocol):
    def handle(self, message: Message) -> dict[str, Any]: ...  # raises HotpolicyError; called by one thread


class PolicyServer:
    """Serves a slot's live policy to robots, and its control to operators.

    `start` binds and returns; `wait_ready` returns after the warm-up. `stop` drains. Also a context manager.
    """

    def __init__(self, config: ServeConfig, slot: Slot, control: Control):
        self.config = config
        self.endpoint, self.control_endpoint = config.endpoint, config.control  # exact once started
        self.state: State = "starting"
        self.failure = ""  # why the state is `failed`
        self.meter = Meter()
        self._slot, self._control = slot, control
        scheduler = Scheduler(config.max_batch, config.batch_window_ms / 1000, config.max_sessions)
        self._inference = Inference(scheduler, slot, self.meter, self._answer)
        self._outbox: deque[tuple[zmq.Socket[bytes], bytes, Message]] = deque()
        self._commands: queue.Queue[tuple[bytes, Message] | None] = queue.Queue(COMMANDS)
        self._warm = threading.Event()
        self._ended = threading.Event()  # asked to stop, or failed
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._locks: list[Any] = []
        self._exposition: Exposition | None = None
        self._started_at = now()
        self._wakers = threading.local()  # each thread's own end of the inproc wake-up

    # Life.

    def start(self) -> None:
        """Bind and start the threads. Raises ConfigError, and leaves nothing behind, when an endpoint is taken."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._bind()
            if self.config.metrics_port is not None:
                self._exposition = Exposition(self.config.metrics_port, self.stats)
        except ConfigError:
            self._release()
            raise
        for name, target in (
            (SOCKET_THREAD, self._serve),
            ("hotpolicy-inference", self._infer),
            ("hotpolicy-control", self._command),
        ):
            thread = threading.Thread(target=self._guarded, args=(target,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Return once warmed up. Raises EngineFault when the warm-up failed or took longer."""
        if not self._warm.wait(timeout_s):
            raise EngineFault(f"the policy was not warm after {timeout_s:g} s")
        if self.state == "failed":
            raise EngineFault(self.failure)

    def run(self) -> None:
        """Start, serve in the foreground until SIGTERM or SIGINT, then drain. A second signal ends at once.

        Raises ConfigError from `start`, and EngineFault when the server failed by itself.
        """

        signals: list[int] = []

        def stop(number: int, frame: FrameType | None) -> None:
            signals.append(number)
            self._ended.set()
            if len(signals) > 1:
                raise KeyboardInterrupt

        kept = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self.start()
            while not self._ended.wait(1.0):
                pass
            self.stop()
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)
        if self.failure:
            raise EngineFault(self.failure)

    def stop(self) -> None:
        """Refuse new requests, finish those that wait (at most `drain_s`), answer the rest `busy`, close."""
        if not self._threads:
            return
        if self.state != "failed":
            self.state = "draining"
            drained = Deadline.after(self.config.drain_s)
            while not self._inference.idle() and not drained.passed():
                self._closing.wait(0.005)
        socket_thread, inference_thread, control_thread = self._threads
        self._inference.stop()
        inference_thread.join(1.0)  # a model that computes for longer is left behind: its thread is a daemon
        with contextlib.suppress(queue.Full):
            self._commands.put_nowait(None)
        control_thread.join(1.0)
        self._closing.set()
        self._wake()
        socket_thread.join(5.0)
        self._threads = []
        if waker := getattr(self._wakers, "socket", None):
            waker.close(0)
            del self._wakers.socket
        self._release()
        self._ended.set()
        if self.state != "failed":
            self.state = "stopped"

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
            "uptime_s": now() - self._started_at,
            "counts": self.meter.counts(),
            "latency_ms": self.meter.latency_ms(),
            "waiting": self._inference.waiting(),
            "swap_stall_ms": dict(self._inference.swap_stall_ms),
            "versions": {role: policy.version if policy else None for role, policy in roles.items()},
        }

    def _bind(self) -> None:
        self._data = self._router()
        self._operators = self._router()
        self._wakes = self._context.socket(zmq.PULL)
        self._wakes.bind("inproc://wake")
        for socket, name in ((self._data, "endpoint"), (self._operators, "control")):
            if lock := endpoints.bind(socket, name, getattr(self.config, name)):
                self._locks.append(lock)
        self.endpoint = self._data.getsockopt_string(zmq.LAST_ENDPOINT)
        self.control_endpoint = self._operators.getsockopt_string(zmq.LAST_ENDPOINT)

    def _router(self) -> zmq.Socket[bytes]:
        router = self._context.socket(zmq.ROUTER)
        router.setsockopt(zmq.MAXMSGSIZE, self.config.caps.message_bytes)
        router.setsockopt(zmq.RCVHWM, BACKLOG)
        router.setsockopt(zmq.SNDHWM, BACKLOG)  # a peer that does not read loses replies; it holds nobody up
        router.setsockopt(zmq.RCVTIMEO, 0)
        router.setsockopt(zmq.SNDTIMEO, 0)
        router.setsockopt(zmq.LINGER, 500)
        router.setsockopt(zmq.HANDSHAKE_IVL, 2000)
        router.setsockopt(zmq.HEARTBEAT_IVL, 5000)
        return router

    def _release(self) -> None:
        if self._exposition:
            self._exposition.close()
            self._exposition = None
        self._context.destroy()
        while self._locks:
            self._locks.pop().release()

    def _guarded(self, target: Callable[[], None]) -> None:
        """A thread of ours that ends by an error takes the server to `failed`, loudly."""
        try:
            target()
        except Exception as error:
            logger.exception("%s ended", threading.current_thread().name)
            self._fail(f"{threading.current_thread().name}: {envelope.one_line(str(error))}")

    def _fail(self, reason: str) -> None:
        self.failure, self.state = reason, "failed"
        self._warm.set()
        self._ended.set()

    # The inference and control threads.

    def _infer(self) -> None:
        self.state = "warming"
        self._inference.warm_up()
        if self.state == "warming":
            self.state = "ready"
        self._warm.set()
        try:
            self._inference.run()
        finally:
            self._close_waker()

    def _command(self) -> None:
        while (command := self._commands.get()) is not None:
            peer, message = command
            id = message["id"]
            try:
                result = self._control.handle(message)
                if message["kind"] == "status":
                    result = {**result, "server": self.stats()}
                reply = envelope.message("control", id, result=result)
            except HotpolicyError as error:
                reply = envelope.from_error(id, error)
            except Exception as error:
                logger.exception("control %s failed", message["kind"])
                reply = envelope.from_error(id, HotpolicyError(f"{message['kind']}: {type(error).__name__}: {error}"))
            self._post(self._operators, peer, reply)
        self._close_waker()

    def _answer(self, ticket: Ticket, outcome: Outcome) -> None:
        """Any thread: what becomes of a request. Called exactly once for each that was admitted."""
        if isinstance(outcome, HotpolicyError):
            self.meter.count(outcome.code)
            reply = envelope.from_error(ticket.request.id, outcome)
        else:
            self.meter.count("answered")
            self.meter.observe(outcome.timings_ms.items())
            reply = envelope.from_chunk(outcome)
        self._post(self._data, ticket.peer, reply)

    def _post(self, socket: zmq.Socket[bytes], peer: bytes, reply: Message) -> None:
        if self._closing.is_set():
            return  # a model that outlived the drain: nobody is left to hear it
        self._outbox.append((socket, peer, reply))
        if threading.current_thread().name != SOCKET_THREAD:
            self._wake()

    def _wake(self) -> None:
        waker = getattr(self._wakers, "socket", None)
        if waker is None:
            waker = self._wakers.socket = self._context.socket(zmq.PUSH)
            waker.setsockopt(zmq.LINGER, 0)
            waker.connect("inproc://wake")
        with contextlib.suppress(zmq.Again):  # a thousand wake-ups wait already
            waker.send(b"", zmq.NOBLOCK)

    def _close_waker(self) -> None:
        if waker := getattr(self._wakers, "socket", None):
            waker.close(0)

    # The socket thread.

    def _serve(self) -> None:
        poller = zmq.Poller()
        for socket in (self._wakes, self._operators, self._data):
            poller.register(socket, zmq.POLLIN)
        expiry: float | None = None
        while not (self._closing.is_set() and not self._outbox):
            events = dict(poller.poll(_until(expiry)))
            if self._wakes in events:
                self._drain_wakes()
            if self._operators in events:
                self._receive(self._operators, self._on_operator)
            if self._data in events:
                self._receive(self._data, self._on_robot)
            expiry = self._inference.expire()
            self._send()
        for socket in (self._wakes, self._operators, self._data):
            socket.close()

    def _drain_wakes(self) -> None:
        try:
            for _ in range(BURST):
                self._wakes.recv(zmq.NOBLOCK)
        except zmq.Again:
            pass

    def _receive(self, socket: zmq.Socket[bytes], dispatch: Callable[[bytes, Message], Message | None]) -> None:
        for _ in range(BURST):
            try:
                peer, *frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self.meter.count("received")
            if reply := self._handle([frame.buffer for frame in frames], peer.bytes, dispatch):
                self._outbox.append((socket, peer.bytes, reply))

    def _handle(
        self, frames: Sequence[wire.Buffer], peer: bytes, dispatch: Callable[[bytes, Message], Message | None]
    ) -> Message | None:
        """A peer's message, or its garbage: answered where an id can be read, counted always."""
        fault: HotpolicyError
        try:
            message = wire.decode(frames, self.config.caps)
            envelope.Fields(message, BadRequest).integer("id")
            return dispatch(peer, message)
        except HotpolicyError as error:
            fault = error
        except Exception as error:  # a fault of ours must not silence the socket for everybody
            logger.exception("a message could not be handled")
            fault = EngineFault(f"server: {type(error).__name__}: {error}")
        self.meter.count(fault.code)
        id = wire.peek_id(frames, self.config.caps)
        return envelope.from_error(id, fault) if id is not None else None

    def _on_robot(self, peer: bytes, message: Message) -> Message | None:
        id = message["id"]
        match message.get("kind"):
            case "infer":
                self._admit(peer, message)
                return None
            case "ping":
                return envelope.message("pong", id, state=self.state)
            case "hello":
                return self._hello(id)
            case "stats":
                return envelope.message("stats", id, stats=self.stats())
            case "cancel":
                session = envelope.Fields(message, BadRequest).text("session", envelope.SESSION_LENGTH)
                self._inference.cancel((peer, session))
                return envelope.message("cancelled", id)
            case "bye":
                session = envelope.Fields(message, BadRequest).text("session", envelope.SESSION_LENGTH)
                self._inference.leave((peer, session))
                return None
        raise BadRequest("kind: expected infer, hello, ping, stats, cancel or bye on the robots' endpoint")

    def _admit(self, peer: bytes, message: Message) -> None:
        arrived = now()
        self.meter.count("asked")
        request = envelope.to_request(message)
        self._slot.live.check(request.observation)
        if self.state == "draining":
            raise Busy("the server is draining")
        if self.state == "failed":
            raise EngineFault(self.failure)
        budget_ms = min(request.deadline_ms, self.config.longest_deadline_ms)
        self._inference.admit(Ticket(request, peer, arrived, arrived + budget_ms / 1000))

    def _hello(self, id: int) -> Message:
        policy = self._slot.live
        return envelope.message(
            "hello",
            id,
            spec=policy.spec.to_dict(),
            horizon=policy.horizon,
            version=policy.version,
            digest=policy.digest,
            state=self.state,
        )

    def _on_operator(self, peer: bytes, message: Message) -> Message | None:
        id, kind = message["id"], message.get("kind")
        if kind == "ping":
            return envelope.message("pong", id, state=self.state)
        if kind == "shutdown":
            self._ended.set()
            return envelope.message("control", id, result={"state": "draining"})
        if kind not in CONTROL_VERBS:
            raise BadRequest(
                f"kind: expected one of ping, shutdown, {', '.join(CONTROL_VERBS)} on the control endpoint"
            )
        try:
            self._commands.put_nowait((peer, message))
        except queue.Full as error:
            raise Busy(f"control: {COMMANDS} commands are waiting already") from error
        return None

    def _send(self) -> None:
        while self._outbox:
            socket, peer, reply = self._outbox.popleft()
            try:
                frames = wire.encode(reply)
            except BadRequest as error:  # a control's answer that has no place on the wire
                logger.error("reply to %s dropped: %s", reply["kind"], error)
                frames = wire.encode(envelope.from_error(reply["id"], HotpolicyError(f"reply: {error}")))
            try:
                socket.send_multipart([peer, *frames], zmq.NOBLOCK, copy=False)
            except zmq.ZMQError as error:
                self.meter.count("unsent")
                logger.warning("reply to a peer dropped: %s", error)


def _until(expiry: float | None) -> int:
    """Milliseconds to poll: until the next request expires, rounded up; at most a second."""
    return 1000 if expiry is None else max(0, min(1000, int(1000 * (expiry - now())) + 1))
