"""The virtual arm's process: servos on a pseudo-terminal, MuJoCo behind their registers, a socket for the world.

The serial side is all a driver ever sees, and is a real arm's. The world socket (ZeroMQ REP, msgpack) stands for
what surrounds a real arm: the camera's picture, somebody who puts the cubes back, somebody who says "well done".
One thread, one poll loop: a tick is always answered after the bytes that were written before it.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zmq

from hotpolicy.robots.calibration import JointCalibration
from hotpolicy.robots.sim.faults import KINDS, Fault
from hotpolicy.robots.sim.kinematics import JOINTS, joints_from_ticks
from hotpolicy.robots.sim.pty import VirtualPort
from hotpolicy.robots.sim.scene import IMAGE_SIZE, SUBSTEPS, TIMESTEP
from hotpolicy.robots.sim.servos import VirtualBus
from hotpolicy.robots.sim.tasks import Task
from hotpolicy.robots.sim.world import World
from hotpolicy.runtime import endpoint
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import BadRequest, ConfigError, HotpolicyError

WIRE_BAUD = 1_000_000  # bit/s, as the servos are set
CLOSE_S = 2e-3  # what is due sooner is waited for awake: no sleep is that exact
MAX_MESSAGE = 4096  # bytes; a question to the world is a few words


@dataclass(frozen=True, slots=True)
class VirtualArmConfig:
    world: str  # ZeroMQ endpoint of the world socket, ipc or loopback
    link: Path | None = None  # a stable name for the serial port
    paced: bool = False  # bytes take the time they take on a real wire
    realtime: bool = False  # run by the clock; otherwise only a `tick` moves time
    image_size: int = IMAGE_SIZE  # pixels
    faults: tuple[Fault, ...] = ()  # trouble from the start


def virtual_calibration() -> dict[str, JointCalibration]:
    """How the virtual arm left the factory: ids 1 to 6, no offsets, the tick ranges of its joints."""
    return {
        joint.name: JointCalibration(
            id=index, drive_mode=0, homing_offset=0, range_min=joint.tick_low, range_max=joint.tick_high
        )
        for index, joint in enumerate(JOINTS, start=1)
    }


class VirtualArm:
    """`run` serves until `stop` is called, a `close` arrives, or SIGTERM."""

    def __init__(self, config: VirtualArmConfig):
        self.world = World(config.image_size)
        self.bus = VirtualBus.from_calibration(virtual_calibration())
        self.bus.strict_baud = True
        self.bus.baud = WIRE_BAUD if config.paced else None
        for fault in config.faults:
            self.bus.inject(fault.kind, fault.id, fault.times, fault.delay_s)
        self.port = VirtualPort(config.link)
        self.realtime = config.realtime
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
        try:
            self._lock = endpoint.bind(self._socket, "world", endpoint.check("world", config.world))
        except ConfigError:
            self._socket.close()
            self.port.close()
            raise
        self._running = True
        self._clock = now()  # where physics has got to, when running by the clock
        self._substeps = 0
        self._seat()

    def run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        watched = -1
        try:
            while self._running:
                if watched != self.port.master:  # unplugged, or plugged in again
                    if watched >= 0:
                        poller.unregister(watched)
                    watched = self.port.master
                    if watched >= 0:
                        poller.register(watched, zmq.POLLIN)
                ready = dict(poller.poll(self._patience()))
                if watched in ready or watched < 0 or self.bus.next_due is not None:
                    self.port.pump(self.bus)
                if self.realtime:
                    self._catch_up()
                if self._socket in ready:
                    self._socket.send(msgpack.packb(self._answer(self._socket.recv())))
        finally:
            self._socket.close()
            self.port.close()
            if self._lock is not None:
                self._lock.release()

    def stop(self) -> None:
        self._running = False

    def _patience(self) -> int:
        """How long poll may sleep, ms."""
        if self.bus.next_due is not None:
            return 0 if self.bus.next_due - now() < CLOSE_S else 1
        if self.port.master < 0:
            return 5
        return 5 if self.realtime else 200

    def _catch_up(self) -> None:
        """Advance physics to the clock in slices, and let the referee look ten times a second."""
        due = int((now() - self._clock) / TIMESTEP)
        if due > 1 / TIMESTEP:  # stopped or suspended for over a second: time lost is not made up
            self._clock, due = now(), 0
        for _ in range(due):
            self._drive()
            self.world.advance(1)
            self._clock += TIMESTEP
            self._substeps += 1
            if self._substeps % SUBSTEPS == 0:
                self.world.referee.tick()
        if due:
            self._feel(due * TIMESTEP)

    def _drive(self) -> None:
        """Servo goals -> physics. A released servo stays where it is: the links are balanced."""
        present = self.world.ticks()
        goals = [
            present[index] if servo.goal_ticks is None else servo.goal_ticks
            for index, servo in enumerate(self.bus.servos)
        ]
        self.world.goal = joints_from_ticks(np.array(goals)) - self.world.offset

    def _feel(self, dt: float) -> None:
        """Physics -> servo registers, `dt` seconds after it last was."""
        loads = self.world.scene.loads()
        for servo, ticks, load in zip(self.bus.servos, self.world.ticks(), loads, strict=True):
            servo.present_ticks = float(ticks)
            servo.live(dt, float(load))

    def _seat(self) -> None:
        """After a reset: the arm stands elsewhere, and wants to stay there."""
        for servo, ticks in zip(self.bus.servos, self.world.ticks(), strict=True):
            servo.place(float(ticks))
            servo.poke("goal_position", servo.peek("present_position"))

    def _answer(self, message: bytes) -> dict[str, Any]:
        try:
            question = msgpack.unpackb(message)
            if not isinstance(question, dict):
                raise BadRequest(f"world: expected a map, got {type(question).__name__}")
            self._do(question)
        except HotpolicyError as error:
            return {"error": str(error), "code": error.code}
        except (ValueError, TypeError, KeyError) as error:  # not msgpack, or a field of the wrong kind
            return {"error": f"world: malformed question: {error}", "code": BadRequest.code}
        return self._describe()

    def _do(self, question: dict[str, Any]) -> None:
        match question.get("do"):
            case "reset":
                self.world.reset(Task.parse(question["task"]), int(question["seed"]), bool(question.get("wide")))
                self._seat()
                self._clock, self._substeps = now(), 0
            case "tick":
                if self.realtime:
                    raise BadRequest("tick: this virtual arm runs by the clock; start it without --realtime")
                self._drive()
                self.world.tick()
                self._feel(SUBSTEPS * TIMESTEP)
            case "look":
                pass
            case "fault":
                self._inject(question)
            case "mend":
                self.bus.clear()
            case "close":
                self._running = False
            case other:
                raise BadRequest(f"do: expected reset, tick, look, fault, mend or close, got {other!r}")

    def _inject(self, question: dict[str, Any]) -> None:
        kind, id, times = question.get("kind"), question.get("id"), question.get("times")
        if kind not in KINDS:
            raise BadRequest(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
        id, times = (None if number is None else int(number) for number in (id, times))
        self.bus.inject(kind, id, times, float(question.get("delay_s", 0)))

    def _describe(self) -> dict[str, Any]:
        referee, truth = self.world.referee, self.world.truth()
        return {
            "image": self.world.scene.image().tobytes(),
            "size": self.world.scene.camera.size,
            "task": self.world.task.instruction,
            "tick": referee.ticks,
            "success": referee.success,
            "over": referee.over,
            "realtime": self.realtime,
            "truth": {name: getattr(truth, name).tolist() for name in ("tip", "cube", "start")},
        }


def serve_virtual_arm(config: VirtualArmConfig, ready: Any = print) -> None:
    """Run one until SIGTERM or SIGINT; `ready` is called with the path of the serial port once it can be opened."""
    arm = VirtualArm(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: arm.stop())
    ready(arm.port.path)
    arm.run()
