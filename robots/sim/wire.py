"""The wire between a program and virtual servos: its pace, and trouble on command. What the bytes mean is a subclass's.

A subclass says how questions are split off, who answers them with what, and what damage its answers can take; see
`servos.VirtualBus` for one. `feed` takes what a program wrote and returns what it would read at once; `due` what came
late, and with a `baud` everything does, when its last bit has passed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Generic, Protocol, TypeVar

from hotpolicy.robots.sim.faults import Fault, Kind
from hotpolicy.runtime.clock import now

SILENCE_S = 0.1  # a question that stops half-way is given up after this long
BITS_PER_BYTE = 10  # 8N1


class WireServo(Protocol):
    """What the wire and a world see of any virtual servo. Ticks are in the frame the servo was built with."""

    present_ticks: float  # set by a world

    @property
    def id(self) -> int: ...

    @property
    def baud(self) -> int: ...  # bit/s it listens at

    @property
    def return_delay_s(self) -> float: ...

    @property
    def goal_ticks(self) -> float | None: ...  # where it drives to; None when released

    @property
    def torque(self) -> bool: ...

    def advance(self, max_ticks: float) -> None: ...  # physics for those who have no world

    def overload(self) -> None: ...  # its protection trips now

    def power_cycle(self) -> None: ...


class WireFrame(Protocol):
    @property
    def id(self) -> int: ...  # whom a question is for


Frame = TypeVar("Frame", bound=WireFrame)
Servo = TypeVar("Servo", bound=WireServo)


class VirtualWire(ABC, Generic[Frame, Servo]):
    """Servos on one wire. With `baud` the wire takes its time; with `strict_baud` a servo hears only a program that has
    opened the port at the servo's own rate."""

    damage: ClassVar[Mapping[Kind, Callable[[bytes], bytes]]]  # drop, corrupt, truncate, noise, foreign

    def __init__(self, servos: Iterable[Servo], clock: Callable[[], float] = now, baud: int | None = None):
        self.servos = list(servos)
        self.faults: list[Fault] = []
        self.bytes_in = 0
        self.baud = baud
        self.strict_baud = False
        self._clock = clock
        self._partial = b""
        self._fed_at = clock()
        self._free_at = clock()  # when the wire will have carried all that is on it
        self._rate: int | None = None  # the program's, as last told
        self._late: deque[tuple[float, bytes]] = deque()  # (when, bytes), in the order they leave

    @abstractmethod
    def split(self, buffer: bytes) -> tuple[Sequence[Frame], bytes]: ...  # questions, and what may begin another

    @abstractmethod
    def encode(self, frame: Frame) -> bytes: ...  # as it was written, for an echo

    @abstractmethod
    def answers(self, frame: Frame) -> Iterable[tuple[Servo, bytes | None]]: ...  # in the order they leave

    def servo(self, id: int) -> Servo:
        return next(servo for servo in self.servos if servo.id == id)

    # Trouble ----------------------------------------------------------------------------------------------------------

    def inject(self, kind: Kind, id: int | None = None, times: int | None = None, delay_s: float = 0.0) -> Fault:
        """Start a fault; see `Fault` for the kinds. `clear` ends all of them."""
        fault = Fault(kind, id, 1 if kind == "unplug" and times is None else times, delay_s)
        if kind == "overload":
            for servo in self.servos:
                if fault.concerns(servo.id):
                    servo.overload()
        else:
            self.faults.append(fault)
        return fault

    def clear(self) -> None:
        self.faults.clear()

    def active(self, kind: Kind, id: int) -> Fault | None:
        """The fault of this kind that concerns the servo now; counts as one use of it."""
        for fault in self.faults:
            if fault.kind == kind and fault.concerns(id):
                fault.use()
                return fault
        return None

    def hears(self, servo: Servo) -> bool:
        """Whether a question reaches this servo at all."""
        if self._rate is None and not self.faults:
            return True
        return (self._rate is None or servo.baud == self._rate) and self.active("silent", servo.id) is None

    # Bytes ------------------------------------------------------------------------------------------------------------

    def feed(self, data: bytes, rate: int | None = None) -> bytes:
        """Bytes from the program in, bytes that answer at once out. Accepts any split and any junk. `rate` is the
        program's, bit/s, where it matters."""
        moment = self._clock()
        if self._partial and moment - self._fed_at > SILENCE_S:
            self._partial = b""
        self._fed_at = moment
        self._rate = rate
        self.bytes_in += len(data)
        if self.baud:
            self._free_at = max(self._free_at, moment) + len(data) * BITS_PER_BYTE / self.baud
        frames, self._partial = self.split(self._partial + data)
        return self.due() + b"".join([part for frame in frames for part in self._handle(frame)])

    def due(self) -> bytes:
        """What was late and whose time has come."""
        ready = b""
        while self._late and self._late[0][0] <= self._clock():
            ready += self._late.popleft()[1]
        return ready

    @property
    def next_due(self) -> float | None:
        """When `due` has something, on the wire's clock (s), or None."""
        return self._late[0][0] if self._late else None

    def _handle(self, frame: Frame) -> Iterable[bytes]:
        if not (self.faults or self.baud or self._late):  # nothing but the answers
            return [answer for _, answer in self.answers(frame) if answer is not None]
        return self._troubled(frame)

    def _troubled(self, frame: Frame) -> Iterable[bytes]:
        if self.active("echo", frame.id):
            yield self._pass(self.encode(frame), 0.0)
        for servo, answer in self.answers(frame):
            if answer is not None:
                yield self._leave(servo, answer)

    def _leave(self, servo: Servo, answer: bytes) -> bytes:
        """An answer on its way out, past the faults."""
        if self.baud:
            self._free_at += servo.return_delay_s
        kind = next((kind for kind in self.damage if self.active(kind, servo.id)), None)
        if kind is not None:  # one kind of damage an answer
            answer = self.damage[kind](answer)
        if late := self.active("late", servo.id):
            return self._pass(answer, late.delay_s)
        if split := self.active("split", servo.id):
            half = len(answer) // 2
            return self._pass(answer[:half], 0.0) + self._pass(answer[half:], split.delay_s)
        return self._pass(answer, 0.0)

    def _pass(self, data: bytes, delay_s: float) -> bytes:
        """Bytes that leave now; what must wait goes to the late queue, and nothing overtakes it there."""
        if self.baud:
            self._free_at += len(data) * BITS_PER_BYTE / self.baud
            at = self._free_at + delay_s
        elif delay_s or self._late:
            at = self._clock() + delay_s
        else:
            return data
        self._late.append((max(at, self._late[-1][0]) if self._late else at, data))
        return b""
