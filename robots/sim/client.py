"""What a program asks of the world around a virtual arm: a new scene, the next tick, a picture, the referee's word."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import zmq

from hotpolicy.robots.robot import Frame
from hotpolicy.robots.sim.faults import Kind
from hotpolicy.robots.teleop.scripted import Truth
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import CameraLost, from_code


@dataclass(frozen=True, slots=True)
class Moment:
    """The world as last told."""

    image: np.ndarray  # (size, size, 3) uint8
    seen_at: float  # monotonic s
    task: str
    tick: int  # since the reset
    success: bool
    over: bool
    realtime: bool
    truth: Truth


class VirtualWorld:
    """One world socket, used by one thread. Raises CameraLost when the virtual arm does not answer in time."""

    def __init__(self, endpoint: str, timeout_s: float = 5.0):
        self.endpoint, self._timeout_s = endpoint, timeout_s
        self._socket = self._connect()
        self.moment = self._ask({"do": "look"})

    def reset(self, task: str, seed: int, wide: bool = False) -> Moment:
        """Draw the scene of `seed` for an instruction; the arm stands at a new start. Raises BadRequest for an
        instruction no scene can be drawn for."""
        return self._ask({"do": "reset", "task": task, "seed": seed, "wide": wide})

    def tick(self) -> Moment:
        """Let one control period pass (lock-step only)."""
        return self._ask({"do": "tick"})

    def look(self) -> Moment:
        return self._ask({"do": "look"})

    def fault(self, kind: Kind, id: int | None = None, times: int | None = None, delay_s: float = 0.0) -> None:
        """Make trouble on the arm's bus, see `faults.Fault`; `mend` ends what has not ended by itself."""
        self._ask({"do": "fault", "kind": kind, "id": id, "times": times, "delay_s": delay_s})

    def mend(self) -> None:
        self._ask({"do": "mend"})

    def shut_down(self) -> None:
        """End the virtual arm's process."""
        self._ask({"do": "close"})
        self.close()

    def close(self) -> None:
        self._socket.close()

    def _connect(self) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
        socket.linger = 0
        socket.rcvtimeo = int(self._timeout_s * 1000)
        socket.connect(self.endpoint)
        return socket

    def _ask(self, question: dict[str, Any]) -> Moment:
        self._socket.send(msgpack.packb(question))
        try:
            answer = msgpack.unpackb(self._socket.recv())
        except zmq.Again as error:
            self._socket.close()  # a REQ socket that missed an answer can ask no more
            self._socket = self._connect()
            raise CameraLost(f"{self.endpoint}: the virtual arm did not answer in {self._timeout_s} s") from error
        if "error" in answer:
            raise from_code(answer["code"], answer["error"])
        self.moment = _moment(answer)
        return self.moment


class VirtualCamera:
    """The picture the world showed last; by the clock, a new one for each read."""

    def __init__(self, world: VirtualWorld, name: str = "front"):
        self.world, self.name = world, name

    def read(self) -> Frame:
        moment = self.world.look() if self.world.moment.realtime else self.world.moment
        return Frame(moment.image, moment.seen_at)

    def close(self) -> None:
        self.world.close()


class LockStep:
    """A pacer that lets simulated time pass: first everything written to the arm arrives, then the world ticks."""

    def __init__(self, world: VirtualWorld, arrived: Callable[[], object]):
        self.world = world
        self._arrived = arrived  # returns once the arm has seen all that was written: a ping will do

    def wait(self) -> float:
        self._arrived()
        self.world.tick()
        return 0.0  # lag, s


def _moment(answer: dict[str, Any]) -> Moment:
    size = answer["size"]
    truth = {name: np.array(values) for name, values in answer["truth"].items()}
    return Moment(
        image=np.frombuffer(answer["image"], np.uint8).reshape(size, size, 3),
        seen_at=now(),
        task=answer["task"],
        tick=answer["tick"],
        success=answer["success"],
        over=answer["over"],
        realtime=answer["realtime"],
        truth=Truth(**truth),
    )
