"""Calibration files in LeRobot's format: where they lie, what they say, and ticks to degrees or percent and back.

The formulas are LeRobot's to the last tick (truncation, clamps, drive mode), so that a policy trained on its datasets
means the same positions here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from hotpolicy.runtime.errors import CalibrationError

DEGREES_PER_TURN = 360.0
MAX_TICK = 4095  # LeRobot divides a turn by resolution - 1
SO_FOLLOWER_NAMES = ("so_follower", "so101_follower", "so100_follower")  # the first is today's, the others were before
SO_LEADER_NAMES = ("so_leader", "so101_leader", "so100_leader")
UNITS = ("deg", "percent", "m100_100")
OLD_FORMAT_KEYS = frozenset(("motor_names", "calib_mode", "start_pos", "end_pos"))


@dataclass(frozen=True, slots=True)
class JointCalibration:
    """One joint of a calibration file; the same numbers live in its servo."""

    id: int
    drive_mode: int  # 1: percent and m100_100 run backwards
    homing_offset: int  # ticks; present = actual - offset
    range_min: int  # ticks
    range_max: int  # ticks

    @property
    def middle(self) -> float:
        return (self.range_min + self.range_max) / 2

    def clamp(self, ticks: int) -> int:
        return min(max(ticks, self.range_min), self.range_max)

    def to_value(self, ticks: int, unit: str) -> float:
        """Ticks in `unit`: deg (0 in the middle, not clamped), percent (0..100) or m100_100 (-100..100)."""
        if unit == "deg":
            return (ticks - self.middle) * DEGREES_PER_TURN / MAX_TICK
        share = (self.clamp(ticks) - self.range_min) / (self.range_max - self.range_min)
        if unit == "percent":
            return 100 - share * 100 if self.drive_mode else share * 100
        if unit == "m100_100":
            return -(share * 200 - 100) if self.drive_mode else share * 200 - 100
        raise CalibrationError(f"unit: expected one of {', '.join(UNITS)}, got {unit!r}")

    def to_ticks(self, value: float, unit: str) -> int:
        """The inverse, truncated to a whole tick; percent and m100_100 clamp, deg does not."""
        span = self.range_max - self.range_min
        if unit == "deg":
            return int(value * MAX_TICK / DEGREES_PER_TURN + self.middle)
        if unit == "percent":
            share = min(100.0, max(0.0, 100 - value if self.drive_mode else value)) / 100
        elif unit == "m100_100":
            share = (min(100.0, max(-100.0, -value if self.drive_mode else value)) + 100) / 200
        else:
            raise CalibrationError(f"unit: expected one of {', '.join(UNITS)}, got {unit!r}")
        return int(share * span + self.range_min)


Calibration = Mapping[str, JointCalibration]  # by joint name without ".pos"
_FIELDS = tuple(field.name for field in fields(JointCalibration))


def calibration_root() -> Path:
    """The folder LeRobot keeps calibrations in, by its own environment variables."""
    explicit = os.environ.get("HF_LEROBOT_CALIBRATION")
    if explicit:
        return Path(explicit).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    hugging_face = os.environ.get("HF_HOME") or f"{cache}/huggingface"
    lerobot = os.environ.get("HF_LEROBOT_HOME") or f"{hugging_face}/lerobot"
    return Path(lerobot).expanduser() / "calibration"


def find_calibration(id: str, names: Sequence[str] = SO_FOLLOWER_NAMES, kind: str = "robots") -> Path:
    """The file of the arm called `id` under any of the directory `names`. `kind` is robots or teleoperators.

    Raises CalibrationError that says where it looked and how to make the file.
    """
    root = calibration_root() / kind
    places = [root / name / f"{id}.json" for name in names]
    for place in places:
        if place.is_file():
            return place
    role = "robot" if kind == "robots" else "teleop"
    looked = ", ".join(str(place) for place in places)
    raise CalibrationError(
        f"calibration of {id!r}: not found in {looked}; make it with `hotpolicy calibrate --id {id} --arm ARM "
        f"--port PORT` or `lerobot-calibrate --{role}.type={names[-1]} --{role}.id={id} --{role}.port=PORT`, or give a "
        "file's path"
    )


def load_calibration(where: str | Path, names: Sequence[str] = SO_FOLLOWER_NAMES, kind: str = "robots") -> Calibration:
    """Read a calibration by path (it ends in .json) or by the arm's id in LeRobot's folders."""
    path = Path(where).expanduser()
    return read_calibration(path if path.suffix == ".json" else find_calibration(str(where), names, kind))


def read_calibration(path: Path) -> Calibration:
    """Raises CalibrationError naming the file and, where it can, the joint and field."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CalibrationError(f"calibration file {path}: not found") from error
    except OSError as error:
        raise CalibrationError(f"calibration file {path}: {error.strerror}") from error
    except ValueError as error:  # bad JSON, bad UTF-8
        raise CalibrationError(f"calibration file {path}: expected JSON, got something else ({error})") from error
    return parse_calibration(data, str(path))


def parse_calibration(data: object, where: str) -> Calibration:
    if not isinstance(data, dict) or not data:
        raise CalibrationError(f"{where}: expected an object of joints, got {type(data).__name__}")
    if OLD_FORMAT_KEYS & data.keys() or all(isinstance(value, list) for value in data.values()):
        raise CalibrationError(
            f"{where}: is LeRobot's old calibration of lists, whose numbers mean something else: recalibrate the arm"
        )
    joints = {name: _parse_joint(f"{where}: joint {name}", entry) for name, entry in data.items()}
    ids = [joint.id for joint in joints.values()]
    if len(set(ids)) != len(ids):
        raise CalibrationError(f"{where}: expected a different id for each joint, got {ids}")
    return joints


def _parse_joint(where: str, entry: object) -> JointCalibration:
    if not isinstance(entry, dict) or set(entry) != set(_FIELDS):
        got = ", ".join(entry) if isinstance(entry, dict) else type(entry).__name__
        raise CalibrationError(f"{where}: expected the fields {', '.join(_FIELDS)}, got {got}")
    for name, value in entry.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise CalibrationError(f"{where}: {name}: expected a whole number, got {value!r}")
    joint = JointCalibration(**entry)
    if joint.drive_mode not in (0, 1):
        raise CalibrationError(f"{where}: drive_mode: expected 0 or 1, got {joint.drive_mode}")
    if joint.range_min >= joint.range_max:
        raise CalibrationError(
            f"{where}: expected range_min below range_max, got {joint.range_min} and {joint.range_max}"
        )
    return joint


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write the file as LeRobot does; a crash leaves the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump({name: asdict(joint) for name, joint in calibration.items()}, file, indent=4)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def differences(expected: Calibration, found: Calibration) -> list[str]:
    """What differs between a file and the servos, one text per number. `drive_mode` is not stored in a servo."""
    texts = []
    for name, joint in expected.items():
        for field in ("homing_offset", "range_min", "range_max"):
            ours, theirs = getattr(joint, field), getattr(found[name], field)
            if ours != theirs:
                texts.append(f"joint {name}: {field} is {ours} in the file and {theirs} in the servo")
    return texts


def whose(found: Calibration) -> list[Path]:
    """Files in LeRobot's folders that say exactly what these servos hold: whose arm this is. Ids cannot tell two arms
    of a kind apart, their calibrations can. Files that cannot be read are no answer, and no error here."""
    same = []
    for file in sorted(calibration_root().glob("*/*/*.json")):
        with suppress(CalibrationError):
            calibration = read_calibration(file)
            if calibration.keys() == found.keys() and not differences(calibration, found):
                same.append(file)
    return same
