"""Keys that move the tool instead of the joints: forward, sideways, up, and its pitch, roll and gripper."""

from __future__ import annotations

import numpy as np

from hotpolicy.robots.kinematics import Chain
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.messages import RobotSpec

SPEED = 0.1  # m/s of a key that arrives in each tick
TURN = 30.0  # deg/s, pitch and roll
GRIP = 60.0  # percent/s

# What a key asks for: forward, left, up, nose down, roll, gripper.
KEYS = {
    "w": (1, 0, 0, 0, 0, 0), "s": (-1, 0, 0, 0, 0, 0),
    "a": (0, 1, 0, 0, 0, 0), "d": (0, -1, 0, 0, 0, 0),
    "q": (0, 0, 1, 0, 0, 0), "e": (0, 0, -1, 0, 0, 0),
    "f": (0, 0, 0, 1, 0, 0), "r": (0, 0, 0, -1, 0, 0),
    "t": (0, 0, 0, 0, 1, 0), "g": (0, 0, 0, 0, -1, 0),
    "y": (0, 0, 0, 0, 0, 1), "h": (0, 0, 0, 0, 0, -1),
}  # fmt: skip
LEGEND = [
    ("w / s", "tool forward / back, from the base"),
    ("a / d", "tool left / right"),
    ("q / e", "tool up / down"),
    ("r / f", "nose up / down"),
    ("t / g", "roll"),
    ("y / h", "gripper open / close"),
]


class ToolKeys:
    """Keys of one tick and where the joints are -> how the joints should move. The roll joint is the chain's last, the
    gripper the joint behind it."""

    def __init__(self, chain: Chain, spec: RobotSpec):
        """Raises ConfigError when the robot is not a chain of hinges with a gripper behind it."""
        hinges = len(chain.hinges)
        units = [joint.unit for joint in spec.joints]
        if units != ["deg"] * hinges + ["percent"]:
            raise ConfigError(f"kinematics: expected {hinges} joints in deg and a gripper in percent, got {units}")
        self._chain, self._roll = chain, hinges - 1
        self._per_tick = np.array([SPEED] * 3 + [TURN, TURN, GRIP]) / spec.rate_hz

    def move(self, positions: np.ndarray, keys: list[str]) -> np.ndarray:
        """(joints,) deg and percent -> what to add to them. However fast a key repeats, it counts once a tick."""
        asked = sum((np.array(KEYS[key]) for key in dict.fromkeys(keys) if key in KEYS), np.zeros(6)) * self._per_tick
        if not asked.any():
            return np.zeros(len(positions))
        way = asked[:3] / max(1.0, float(np.linalg.norm(asked[:3])) / self._per_tick[0])  # several keys: no faster
        turns = self._chain.turn(positions, way, np.radians(asked[3]))
        turns[self._roll] = asked[4]  # the tip lies all but on its axis: it is the hand's, and no way to move the tip
        turns[self._roll + 1] = asked[5]
        return turns
