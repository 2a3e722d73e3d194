"""Where the tool of an arm is, and which way the joints have to turn to move it: a chain of hinges, as a table.

The pose is a product of exponentials (Brockett 1984): each joint turns all that comes after it about its axis at the
zero pose. Moving the tool is one step of damped least squares (Wampler 1986): near a singularity the tool moves less
than it was asked to, and the joints no further than they may.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hotpolicy.robots.sim.kinematics import FOREARM, SHOULDER_HEIGHT, UPPER_ARM, WRIST_TO_TIP

DAMPING = 0.01  # m: moves much smaller than this are lost near a singularity
PITCH_ARM = 0.1  # m: so much of the tool's way is a radian of pitch worth


@dataclass(frozen=True, slots=True)
class Hinge:
    """One turning joint at the zero pose."""

    anchor: tuple[float, float, float]  # m, any point of its axis; x forward, y left, z up from the table
    axis: tuple[float, float, float]  # unit vector; positive turns are right-handed about it
    at_zero: float = 0.0  # rad it is turned by when it reads 0 deg


@dataclass(frozen=True, slots=True)
class Chain:
    """The hinges from base to tool, in the order of the first joints of the arm's vectors; and the tool's tip."""

    hinges: tuple[Hinge, ...]
    tip: tuple[float, float, float]  # m, at the zero pose

    def where(self, positions: np.ndarray) -> np.ndarray:
        """(joints,) deg -> the tip's place, (3,) m. Joints beyond the hinges do not move it."""
        return self._frames(positions)[0]

    def turn(self, positions: np.ndarray, move: np.ndarray, pitch: float = 0.0) -> np.ndarray:
        """How the joints should turn, (joints,) deg, so that the tip moves by `move` ((3,) m) and the tool pitches by
        `pitch` (rad, nose down positive), as far as both are possible. Small moves only: it is one linear step."""
        tip, anchors, axes = self._frames(positions)
        lateral = axes[1]  # the lift joint's axis lies across the arm, wherever that looks
        task = np.vstack([np.cross(axes, tip - anchors).T, PITCH_ARM * (axes @ lateral)])  # (4, hinges)
        wanted = np.append(move, PITCH_ARM * pitch)
        turns = task.T @ np.linalg.solve(task @ task.T + DAMPING**2 * np.eye(4), wanted)
        return np.append(np.degrees(turns), np.zeros(len(positions) - len(self.hinges)))

    def _frames(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The tip (3,), and each hinge's anchor and axis (hinges, 3), where they are now."""
        turned, shift = np.eye(3), np.zeros(3)
        anchors, axes = np.empty((len(self.hinges), 3)), np.empty((len(self.hinges), 3))
        for i, hinge in enumerate(self.hinges):
            anchor, axis = np.array(hinge.anchor), np.array(hinge.axis)
            anchors[i], axes[i] = turned @ anchor + shift, turned @ axis
            rotation = _rotation(axis, np.radians(float(positions[i])) + hinge.at_zero)
            shift = shift + turned @ (anchor - rotation @ anchor)
            turned = turned @ rotation
        return turned @ np.array(self.tip) + shift, anchors, axes


def _rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rodrigues' formula, (3, 3)."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


UP, ACROSS = (0.0, 0.0, 1.0), (0.0, 1.0, 0.0)

# TheRobotStudio's SO-ARM100 model, zero pose of the new calibration: every joint in the middle of its range.
SO101 = Chain(
    (
        Hinge((0.03884, 0.0, 0.0624), (0.0, 0.0, -1.0)),
        Hinge((0.06924, -0.01828, 0.1166), ACROSS),
        Hinge((0.09724, -0.01828, 0.22917), ACROSS),
        Hinge((0.23213, -0.01828, 0.23437), ACROSS),
        Hinge((0.29323, -0.00018, 0.23437), (-1.0, 0.0, 0.0)),
    ),
    tip=(0.39136, 0.0, 0.22647),
)

# The virtual arm: straightened links, all pointing up where the simulator's joints are 0 (see sim/kinematics.py).
_ELBOW, _WRIST = SHOULDER_HEIGHT + UPPER_ARM, SHOULDER_HEIGHT + UPPER_ARM + FOREARM
VIRTUAL = Chain(
    (
        Hinge((0.0, 0.0, 0.0), UP),
        Hinge((0.0, 0.0, SHOULDER_HEIGHT), ACROSS),
        Hinge((0.0, 0.0, _ELBOW), ACROSS, at_zero=1.4),
        Hinge((0.0, 0.0, _WRIST), ACROSS, at_zero=0.8),
        Hinge((0.0, 0.0, _WRIST), UP),
    ),
    tip=(0.0, 0.0, _WRIST + WRIST_TO_TIP),
)

CHAINS: Mapping[str, Chain] = {"so101": SO101, "virtual_so101": VIRTUAL}
