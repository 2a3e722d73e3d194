"""Arms as data: which servos, by what names, in which order. A new arm is a new table, in `robots/arms/`."""

from __future__ import annotations

from dataclasses import dataclass

from hotpolicy.robots.servo.family import Family


@dataclass(frozen=True, slots=True)
class ServoJoint:
    """One row of an arm's table."""

    name: str  # as in the calibration file
    id: int
    model: int  # number of the servo's model
    unit: str = "deg"


@dataclass(frozen=True, slots=True)
class ArmTable:
    """What an arm is made of, in the order of its state and action vectors."""

    name: str
    family: Family
    joints: tuple[ServoJoint, ...]
    calibration_names: tuple[str, ...]  # LeRobot's directory names for it
    leader: bool = False  # moved by a hand: released when connected, and its files lie under teleoperators
