"""A person with a gamepad as operator: sticks and triggers move joints, the further the faster. Knows no device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hotpolicy.robots.teleop.controls import LEGEND, STOP, Controlled, Controls
from hotpolicy.robots.teleop.keyboard import SPEED
from hotpolicy.robots.teleop.pad import XBOX, Gamepad, PadMapping, PadState
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.messages import Observation, RobotSpec

MEANINGS = {key: meaning for keys, meaning in LEGEND for key in keys.split(", ")}


class GamepadOperator(Controlled):
    """Implements robots.robot.Operator; `decision`, `in_control` and `paused` are what robots.operators asks for.

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
