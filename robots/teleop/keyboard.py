"""A person at a terminal as operator: one key pair per joint, arrows and escape as in LeRobot's recorder.

Works wherever a terminal does, also over SSH. A terminal tells of no key that is let go, so each key that arrives,
pressed or repeated while held, moves its joint by one step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hotpolicy.robots.teleop.terminal import Terminal
from hotpolicy.runtime import clock
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.messages import Observation, RobotSpec

if TYPE_CHECKING:
    from hotpolicy.robots.sources import Decision

PAIRS = tuple(zip("qwertyuio", "asdfghjkl", strict=True))  # up and down, in the order of the joints
ENDINGS: dict[str, Decision] = {"escape": "stop", "left": "again", "right": "done"}  # the first one pressed holds
TAKE_OVER = ("space", "tab")
STOP = "x"  # the emergency stop
SPEED = {"deg": 30.0, "percent": 60.0}  # per second, of a key that arrives in each tick

# A key that is held repeats after up to this long. Handing back needs a key apart from the one that took over;
# taking over needs none, and so a key held too long ends with the person in control, never with the policy.
HAND_BACK_S = 1.0


class KeyboardOperator:
    """Implements robots.robot.Operator; `decision` and `in_control` are what robots.sources asks for.

    The target starts where the arm is seen to be, in every episode and at every take-over, and stays in its range.
    """

    def __init__(
        self,
        spec: RobotSpec,
        step: float | Sequence[float] | None = None,
        fd: int | None = None,
        now: Callable[[], float] = clock.now,
        on_stop: Callable[[str], None] | None = None,
    ):
        """`step`: of one key in one tick, deg or percent, for all joints or one each; None: 30 deg/s and 60 percent/s.
        `fd`: the terminal; None: standard input. `on_stop`: called with the reason when the key of the emergency stop
        is pressed. Raises ConfigError, with the terminal untouched."""
        self.spec = spec
        self.decision: Decision = "done"
        self.in_control = False  # took over from a policy; of no meaning where nobody else acts
        self._low = np.array([joint.low for joint in spec.joints])
        self._high = np.array([joint.high for joint in spec.joints])
        self._moves = _moves(spec, _steps(spec, step))
        self._target: np.ndarray | None = None  # (joints,); None: wherever the arm is
        self._stop = False  # asked for between episodes
        self._toggled_at = -np.inf  # s, when the last key of TAKE_OVER came
        self._now = now
        self._on_stop = on_stop
        self._terminal = Terminal(fd, now)

    def begin(self, task: str) -> None:
        """A new episode: keys pressed since the last one are void, but for escape."""
        self._stop = "escape" in self._terminal.pressed()
        self._target, self.in_control, self.decision = None, False, "done"

    def act(self, observation: Observation) -> np.ndarray | None:
        """(joints,) float32 targets in the units of the spec; None when a key has ended the episode (`decision`), or
        the terminal is gone: then nobody is there, and it is a stop."""
        keys = self._terminal.pressed()
        if STOP in keys and self._on_stop is not None:
            self._on_stop("key x")  # before anything else these keys may say
        if self._stop or self._terminal.gone:
            keys.append("escape")
        for key, decision in ENDINGS.items():
            if key in keys:
                self.decision, self._target = decision, None
                return None
        for key in keys:
            if key in TAKE_OVER:
                self._toggle()
        if self._target is None:
            self._target = observation.state.astype(np.float64)
        for key in dict.fromkeys(keys):  # however fast it repeats, a key is one step a tick
            if key in self._moves:
                self._target = self._target + self._moves[key]
        self._target = np.clip(self._target, self._low, self._high)
        return self._target.astype(np.float32)

    def close(self) -> None:
        """Give the terminal its settings back."""
        self._terminal.close()

    def __enter__(self) -> KeyboardOperator:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _toggle(self) -> None:
        repeated = self._now() - self._toggled_at < HAND_BACK_S
        self._toggled_at = self._now()
        if self.in_control and repeated:
            return
        self.in_control = not self.in_control
        self._target = None


def legend(spec: RobotSpec) -> list[tuple[str, str]]:
    """Which key does what, for a screen: (keys, meaning)."""
    joints = [(" / ".join(pair), f"{joint.name} + / -") for pair, joint in zip(PAIRS, spec.joints, strict=False)]
    return [
        *joints,
        ("space, tab", "take over, hand back"),
        ("right", "episode done"),
        ("left", "discard, again"),
        ("escape", "discard, stop"),
        (STOP, "EMERGENCY STOP: torque off"),
    ]


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
