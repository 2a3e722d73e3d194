"""Joint space of the virtual arm: closed-form inverse kinematics, and the way from radians to servo ticks.

The arm has SO-101's six joints, names and servo ids, with straightened links, so that "gripper pointing
straight down" has a closed form. Angles inside the simulator are radians, the gripper is a slide in metres;
outside, everything is what LeRobot's calibration makes of servo ticks: degrees and percent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hotpolicy.runtime.messages import Joint

SHOULDER_HEIGHT = 0.12  # m above the table
UPPER_ARM = 0.12  # m
FOREARM = 0.135  # m
WRIST_TO_TIP = 0.10  # m
TICKS_PER_TURN = 4096  # STS3215


@dataclass(frozen=True, slots=True)
class SimJoint:
    """One joint: its range in the simulator and the servo ticks at both ends of it."""

    name: str
    low: float  # rad (gripper: m)
    high: float
    tick_low: int
    tick_high: int
    unit: str  # "deg" or "percent"


JOINTS = (
    SimJoint("shoulder_pan", -2.2, 2.2, 614, 3481, "deg"),
    SimJoint("shoulder_lift", -1.7, 1.7, 940, 3155, "deg"),
    SimJoint("elbow_flex", 0.0, 2.8, 1135, 2960, "deg"),
    SimJoint("wrist_flex", -1.0, 2.6, 875, 3221, "deg"),
    SimJoint("wrist_roll", -2.5, 2.5, 418, 3677, "deg"),
    SimJoint("gripper", 0.0, 0.036, 2030, 3500, "percent"),
)
NAMES = tuple(joint.name for joint in JOINTS)

_low = np.array([j.low for j in JOINTS])
_high = np.array([j.high for j in JOINTS])
_tick_mid = np.array([(j.tick_low + j.tick_high) / 2 for j in JOINTS])
_tick_span = np.array([j.tick_high - j.tick_low for j in JOINTS])
_mid = (_low + _high) / 2
# The encoder turns with the joint; the gripper's slide is geared to span its servo's range.
_ticks_per_unit = np.array(
    [TICKS_PER_TURN / (2 * np.pi) if j.unit == "deg" else (j.tick_high - j.tick_low) / (j.high - j.low) for j in JOINTS]
)
_percent = np.array([j.unit == "percent" for j in JOINTS])
# LeRobot divides a turn by 4095, not 4096; a gripper is 0..100 over its calibrated range.
_unit_per_tick = np.where(_percent, 100.0 / _tick_span, 360.0 / (TICKS_PER_TURN - 1))
_unit_at_mid = np.where(_percent, 50.0, 0.0)


def ticks(joints: np.ndarray) -> np.ndarray:
    """(6,) simulator joints -> (6,) int encoder ticks."""
    return np.rint(_tick_mid + (joints - _mid) * _ticks_per_unit).astype(int)


def joints_from_ticks(values: np.ndarray) -> np.ndarray:
    """(6,) ticks -> (6,) simulator joints, clipped to their ranges."""
    return np.clip(_mid + (np.asarray(values) - _tick_mid) / _ticks_per_unit, _low, _high)


def units(joints: np.ndarray) -> np.ndarray:
    """(..., 6) simulator joints -> degrees and percent, without the encoder's rounding."""
    return _unit_at_mid + (joints - _mid) * _ticks_per_unit * _unit_per_tick


def joints_from_units(values: np.ndarray) -> np.ndarray:
    """(..., 6) degrees and percent -> simulator joints."""
    return _mid + (np.asarray(values) - _unit_at_mid) / _unit_per_tick / _ticks_per_unit


def spec_joints() -> tuple[Joint, ...]:
    """The joints as a RobotSpec names them: LeRobot's `<joint>.pos`, in degrees and percent."""
    low, high = units(_low), units(_high)
    return tuple(
        Joint(f"{j.name}.pos", j.unit, round(float(a), 3), round(float(b), 3))
        for j, a, b in zip(JOINTS, low, high, strict=True)
    )


# The fastest any goal may move in one 10 Hz tick: 80 deg/s at the shoulder, 115 deg/s beyond it.
MAX_STEP = units(_mid + np.array([0.14, 0.14, 0.2, 0.2, 0.2, 0.012])) - units(_mid)  # deg, percent


def reach(x: float, y: float, z: float, grip: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """Joints that put the finger tip at (x, y, z) m with the gripper straight down.

    Two-link planar geometry in the vertical plane through the target (law of cosines at the elbow). A point out
    of reach is replaced by the nearest one the straight arm can point at.
    Returns (6,) simulator joints; `grip` in m, `roll` in rad.
    """
    radius, height = np.hypot(x, y), z + WRIST_TO_TIP - SHOULDER_HEIGHT
    distance = min(np.hypot(radius, height), UPPER_ARM + FOREARM - 1e-4)
    cosine = (distance**2 - UPPER_ARM**2 - FOREARM**2) / (2 * UPPER_ARM * FOREARM)
    elbow = np.arccos(np.clip(cosine, -1, 1))
    lift = np.arctan2(radius, height) - np.arctan2(FOREARM * np.sin(elbow), UPPER_ARM + FOREARM * np.cos(elbow))
    return np.array([np.arctan2(y, x), lift, elbow, np.pi - lift - elbow, roll, grip])


HOME = reach(0.13, 0.0, 0.14, grip=0.015)  # simulator joints
