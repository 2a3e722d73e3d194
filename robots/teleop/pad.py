"""A gamepad: what it reports, what each input is for, and how far each is pressed. Knows no device and no arm."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from hotpolicy.robots.teleop.controls import STOP
from hotpolicy.runtime.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Axis:
    """A stick or trigger has moved."""

    name: str  # SDL's, e.g. "leftx"
    value: float  # -1 to 1, right and down are positive; of a trigger 0 to 1


@dataclass(frozen=True, slots=True)
class Button:
    name: str  # SDL's, e.g. "a"
    down: bool


@dataclass(frozen=True, slots=True)
class Unplugged:
    pass


@dataclass(frozen=True, slots=True)
class Plugged:
    device: str  # what it calls itself


Event = Axis | Button | Unplugged | Plugged


class Gamepad(Protocol):
    """Where events come from; gone and back again it is still the same one."""

    def events(self) -> list[Event]: ...  # since the last call, in order; never waits

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class PadMapping:
    """What each input is for. Inputs have SDL's standard names: a button, or one direction of an axis, "-lefty"."""

    joints: tuple[tuple[str, str], ...]  # inputs that raise and lower a joint, in the order of the joints
    keys: Mapping[str, str]  # button -> the key of `controls.LEGEND` it stands for
    dead: float = 0.2  # of an axis's way, where it counts as let go; beyond it speed grows from 0

    def __post_init__(self) -> None:
        if not 0 <= self.dead < 1:
            raise ConfigError(f"dead: expected at least 0 and below 1, got {self.dead}")
        inputs = [*(name for pair in self.joints for name in pair), *self.keys]
        if twice := sorted({name for name in inputs if inputs.count(name) > 1}):
            raise ConfigError(f"gamepad: expected one use of each input, got several of {', '.join(twice)}")


XBOX = PadMapping(
    joints=(
        ("+leftx", "-leftx"),
        ("-lefty", "+lefty"),  # away from the person is up
        ("-righty", "+righty"),
        ("+rightx", "-rightx"),
        ("rightshoulder", "leftshoulder"),
        ("+righttrigger", "+lefttrigger"),
        ("dpup", "dpdown"),
        ("dpright", "dpleft"),
        ("rightstick", "leftstick"),
    ),
    keys={"a": "space", "x": "p", "start": "right", "back": "left", "y": "escape", "b": STOP},
)


class PadState:
    """Events in, how far each input is pressed out."""

    def __init__(self, dead: float):
        self.plugged = True
        self._dead = dead
        self._axes: dict[str, float] = {}
        self._held: set[str] = set()
        self._pressed: list[str] = []  # since the last `take`, also those that were let go again

    def feed(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case Axis(name, value):
                    self._axes[name] = value
                case Button(name, True):
                    self._held.add(name)
                    self._pressed.append(name)
                case Button(name, False):
                    self._held.discard(name)
                case Unplugged():
                    if self.plugged:
                        log.warning("gamepad: unplugged; the arm holds until it is plugged in again")
                    self.plugged = False
                    self._let_go()
                case Plugged(device):
                    if not self.plugged:
                        log.warning("gamepad: %s is plugged in; going on", device)
                    self.plugged = True
                    self._let_go()

    def take(self) -> list[str]:
        """The buttons pressed since the last call, in order."""
        pressed, self._pressed = self._pressed, []
        return pressed

    def amount(self, name: str) -> float:
        """How far an input is pressed, 0 to 1; the dead zone is taken off, and what is left of the way is all of it."""
        if name[0] not in "+-":
            return float(name in self._held)
        value = self._axes.get(name[1:], 0.0) * (1 if name[0] == "+" else -1)
        return min(max((value - self._dead) / (1 - self._dead), 0.0), 1.0)

    def _let_go(self) -> None:
        self._axes.clear()
        self._held.clear()
