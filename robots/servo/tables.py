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
    whole_turn: bool = False  # nothing stops it: calibrated as one whole turn
    drive_mode: int = 0  # what calibrating writes down; 1 where the servo is mounted the other way round
    settings: tuple[tuple[str, int], ...] = ()  # what its registers must hold before torque goes on, in this order
    turns: bool = False  # counts over several turns, and forgets how many when it loses power
    follows: str | None = None  # the joint it helps to move, for a second servo on one axis (a shadow)


@dataclass(frozen=True, slots=True)
class ArmTable:
    """What an arm is made of, in the order of its state and action vectors."""

    name: str
    family: Family
    joints: tuple[ServoJoint, ...]
    calibration_names: tuple[str, ...]  # LeRobot's directory names for it
    leader: bool = False  # moved by a hand: released when connected, and its files lie under teleoperators
    shadows: tuple[ServoJoint, ...] = ()  # second servos, which `follow` a joint; they obey what is written to its own

    @property
    def servos(self) -> tuple[ServoJoint, ...]:
        """All that is on the bus; the calibration file has an entry for each."""
        return self.joints + self.shadows
