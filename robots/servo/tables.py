"""Arms as data: which servos, by what names, in which order. A new arm is a new table."""

from __future__ import annotations

from dataclasses import dataclass

from hotpolicy.robots.calibration import SO_FOLLOWER_NAMES


@dataclass(frozen=True, slots=True)
class ServoJoint:
    """One row of an arm's table."""

    name: str  # as in the calibration file
    id: int
    unit: str = "deg"
    model: int = 777


@dataclass(frozen=True, slots=True)
class ArmTable:
    """What an arm is made of, in the order of its state and action vectors."""

    name: str
    joints: tuple[ServoJoint, ...]
    calibration_names: tuple[str, ...]  # LeRobot's directory names for it


SO101_FOLLOWER = ArmTable(
    name="so101_follower",
    joints=(
        ServoJoint("shoulder_pan", 1),
        ServoJoint("shoulder_lift", 2),
        ServoJoint("elbow_flex", 3),
        ServoJoint("wrist_flex", 4),
        ServoJoint("wrist_roll", 5),
        ServoJoint("gripper", 6, unit="percent"),
    ),
    calibration_names=SO_FOLLOWER_NAMES,
)
