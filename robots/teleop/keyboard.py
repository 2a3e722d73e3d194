"""A person at a terminal as operator: one key pair per joint, or for the tool, which a key toggles where the arm's
kinematics are known; arrows and escape as in LeRobot's recorder.

Works wherever a terminal does, also over SSH. A terminal tells of no key that is let go, so each key that arrives,
pressed or repeated while held, moves its joint by one step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from hotpolicy.robots.kinematics import Chain
from hotpolicy.robots.teleop import cartesian
from hotpolicy.robots.teleop.cartesian import ToolKeys
from hotpolicy.robots.teleop.controls import LEGEND, Controlled, Controls
from hotpolicy.robots.teleop.terminal import Terminal
from hotpolicy.runtime import clock
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.messages import Observation, RobotSpec

log = logging.getLogger(__name__)

PAIRS = tuple(zip("qwertyuio", "asdfghjkl", strict=True))  # up and down, in the order of the joints
TOGGLE = "c"  # between joints and tool
SPEED = {"deg": 30.0, "percent": 60.0}  # per second, of a key that arrives in each tick


class KeyboardOperator(Controlled):
    """Implements robots.robot.Operator; `decision`, `in_control` and `paused` are what robots.operators asks for.

    The target starts where the arm is seen to be, in every episode and at every take-over, and stays in its range.
    """

    def __init__(
        self,
        spec: RobotSpec,
        step: float | Sequence[float] | None = None,
        fd: int | None = None,
        now: Callable[[], float] = clock.now,
        on_stop: Callable[[str], None] | None = None,
        chain: Chain | None = None,
        tell: Callable[[str], object] = log.info,
    ):
        """`step`: of one key in one tick, deg or percent, for all joints or one each; None: 30 deg/s and 60 percent/s.
        `fd`: the terminal; None: standard input. `on_stop`: called with the reason when the key of the emergency stop
        is pressed. `chain`: the arm's kinematics, for keys that move its tool. `tell`: shows the person a line. Raises
        ConfigError, with the terminal untouched."""
        self.spec = spec
        self._low = np.array([joint.low for joint in spec.joints])
        self._high = np.array([joint.high for joint in spec.joints])
        self._moves = _moves(spec, _steps(spec, step))
        self._tell = tell
        self._tool = None if chain is None else ToolKeys(chain, spec)
        self.cartesian = False  # keys move the tool
        self._target: np.ndarray | None = None  # (joints,); None: wherever the arm is
        self._controls = Controls(Terminal(fd, now), now, on_stop)

    def begin(self, task: str) -> None:
        """A new episode: keys pressed since the last one are void, but for escape."""
        self._controls.begin()
        self._target = None

    def act(self, observation: Observation) -> np.ndarray | None:
        """(joints,) float32 targets in the units of the spec; None when a key has ended the episode (`decision`), or
        the terminal is gone: then nobody is there, and it is a stop."""
        before = self.in_control, self.paused
        keys = self._controls.press()
        if keys is None:
            self._target = None
            return None
        if self._target is None or before != (self.in_control, self.paused):
            self._target = observation.state.astype(np.float64)
        if TOGGLE in keys:
            self._toggle()
        self._target = self._target + self._asked(self._target, keys)
        self._target = np.clip(self._target, self._low, self._high)
        return self._target.astype(np.float32)

    def _toggle(self) -> None:
        self.cartesian = not self.cartesian and self._tool is not None
        if self._tool is None:
            self._tell("keys move joints: for the tool the robot's profile must name its `kinematics`")
        else:
            self._tell(f"keys move {'the tool' if self.cartesian else 'joints'}")

    def _asked(self, target: np.ndarray, keys: list[str]) -> np.ndarray:
        if self.cartesian and self._tool is not None:
            return self._tool.move(target, keys)
        # However fast it repeats, a key is one step a tick.
        return sum((self._moves[key] for key in dict.fromkeys(keys) if key in self._moves), np.zeros(len(target)))

    def close(self) -> None:
        """Give the terminal its settings back."""
        self._controls.close()

    def __enter__(self) -> KeyboardOperator:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def legend(spec: RobotSpec, tool: bool = False) -> list[tuple[str, str]]:
    """Which key does what, for a screen: (keys, meaning); with `tool` those that move the tool too."""
    joints = [(" / ".join(pair), f"{joint.name} + / -") for pair, joint in zip(PAIRS, spec.joints, strict=False)]
    if tool:
        joints += [(TOGGLE, "move joints, or from here on the tool:"), *cartesian.LEGEND]
    return [*joints, *LEGEND]


def _steps(spec: RobotSpec, step: float | Sequence[float] | None) -> np.ndarray:
    if step is None:
        return np.array([SPEED[joint.unit] / spec.rate_hz for joint in spec.joints])
    steps = np.broadcast_to(step, len(spec.joints)) if np.ndim(step) == 0 else np.asarray(step, dtype=np.float64)
    if steps.shape != (len(spec.joints),) or not (np.isfinite(steps) & (steps > 0)).all():
        raise ConfigError(f"step: expected one number above 0, or {len(spec.joints)} of them, got {step}")
    return steps


def _moves(spec: RobotSpec, steps: np.ndarray) -> dict[str, np.ndarray]:
    if len(spec.joints) > len(PAIRS):
        raise ConfigError(f"keyboard: expected at most {len(PAIRS)} joints, got {len(spec.joints)}")
    moves = {}
    for joint, (up, down) in enumerate(PAIRS[: len(spec.joints)]):
        moves[up] = np.zeros(len(steps))
        moves[up][joint] = steps[joint]
        moves[down] = -moves[up]
    return moves
