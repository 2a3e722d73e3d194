"""A person with a gamepad as operator: sticks and triggers move joints, the further the faster. Knows no device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hotpolicy.robots.teleop.controls import LEGEND, STOP, Controlled, Controls
from hotpolicy.robots.teleop.keyboard import SPEED
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.messages import Observation, RobotSpec

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

MEANINGS = {key: meaning for keys, meaning in LEGEND for key in keys.split(", ")}


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


class GamepadOperator(Controlled):
    """Implements robots.robot.Operator; `decision`, `in_control` and `paused` are what robots.sources asks for.

    The target starts where the arm is seen to be, in every episode and at every take-over, and stays in its range.
    While the gamepad is gone the target stays; the keys of the terminal, where there is one, go on working.
    """

    def __init__(
        self,
        spec: RobotSpec,
        pad: Gamepad,
        controls: Controls,
        mapping: PadMapping = XBOX,
        on_stop: Callable[[str], None] | None = None,
    ):
        """Full deflection is 30 deg/s and 60 percent/s. `on_stop`: called with the reason when the button of the
        emergency stop is pressed. Raises ConfigError when there are more joints than the mapping moves."""
        if len(spec.joints) > len(mapping.joints):
            raise ConfigError(f"gamepad: expected at most {len(mapping.joints)} joints, got {len(spec.joints)}")
        if strange := [joint.name for joint in spec.joints if joint.unit not in SPEED]:
            raise ConfigError(f"gamepad: expected joints in {' or '.join(SPEED)}, {', '.join(strange)} is in neither")
        self.spec = spec
        self._pad = pad
        self._controls = controls
        self._mapping = mapping
        self._on_stop = on_stop
        self._state = PadState(mapping.dead)
        self._step = np.array([SPEED[joint.unit] / spec.rate_hz for joint in spec.joints])  # per tick at most
        self._low = np.array([joint.low for joint in spec.joints])
        self._high = np.array([joint.high for joint in spec.joints])
        self._target: np.ndarray | None = None  # (joints,); None: wherever the arm is

    def begin(self, task: str) -> None:
        """A new episode: buttons pressed since the last one are void, but for stop and the emergency stop."""
        self._controls.begin(self._keys()[1])
        self._target = None

    def act(self, observation: Observation) -> np.ndarray | None:
        """(joints,) float32 targets in the units of the spec; None when a button or key has ended the episode."""
        before = self.in_control, self.paused
        pressed, keys = self._keys()
        if self._controls.press(keys) is None:
            self._target = None
            return None
        if self._target is None or before != (self.in_control, self.paused):
            self._target = observation.state.astype(np.float64)
        if not self.paused:
            self._target = np.clip(self._target + self._step * self._deflection(pressed), self._low, self._high)
        return self._target.astype(np.float32)

    def close(self) -> None:
        """Let go of the gamepad, and give the terminal its settings back."""
        try:
            self._pad.close()
        finally:
            self._controls.close()

    def _keys(self) -> tuple[list[str], list[str]]:
        """The buttons pressed since the last call, and the keys they stand for."""
        self._state.feed(self._pad.events())
        pressed = self._state.take()
        for button in pressed:
            if self._mapping.keys.get(button) == STOP and self._on_stop is not None:
                self._on_stop(f"gamepad button {button}")  # before anything else these buttons may say
                break
        return pressed, [self._mapping.keys[button] for button in pressed if button in self._mapping.keys]

    def _deflection(self, pressed: list[str]) -> np.ndarray:
        """(joints,) of full speed, -1 to 1. A button let go within the tick has moved for the whole of it."""
        if not self._state.plugged:
            return np.zeros(len(self.spec.joints))
        ways = [
            [max(self._state.amount(name), float(name in pressed)) for name in pair]
            for pair in self._mapping.joints[: len(self.spec.joints)]
        ]
        return np.array([up - down for up, down in ways])


def legend(spec: RobotSpec, mapping: PadMapping = XBOX) -> list[tuple[str, str]]:
    """Which input does what, for a screen: (inputs, meaning)."""
    pairs = zip(mapping.joints, spec.joints, strict=False)
    joints = [(" / ".join(pair), f"{joint.name} + / -") for pair, joint in pairs]
    return [*joints, *((button, MEANINGS[key]) for button, key in mapping.keys.items())]
