"""What a servo's count means for the joint it moves: whole turns it has forgotten, and a second servo on one axis."""

from __future__ import annotations

from collections.abc import Mapping

from hotpolicy.robots.calibration import DEGREES_PER_TURN, JointCalibration
from hotpolicy.robots.servo.registers import RESOLUTION
from hotpolicy.robots.servo.tables import ArmTable

SHADOW_TOLERANCE = 5.0  # deg by which two servos on one axis may differ; more, and they work against one another


def forgotten_turns(limit: JointCalibration, ticks: int, tolerance: int) -> int:
    """Whole turns, in ticks, to add to what a servo that counts turns says: after a loss of power it starts again
    within its first one. 0 when no number of turns brings it to its calibrated range, widened by `tolerance`."""
    turns = round((limit.middle - ticks) / RESOLUTION) * RESOLUTION
    return turns if limit.range_min - tolerance <= ticks + turns <= limit.range_max + tolerance else 0


def disagreements(table: ArmTable, said: Mapping[int, int]) -> dict[str, str]:
    """Joints whose two servos do not say the same, and how far they are apart. `said`: raw ticks by id. The raw ticks
    count: the second takes the goals of the first as they are."""
    ids = {row.name: row.id for row in table.joints}
    texts = {}
    for row in table.shadows:
        assert row.follows is not None
        apart = (said[row.id] - said[ids[row.follows]]) * DEGREES_PER_TURN / RESOLUTION
        if abs(apart) > SHADOW_TOLERANCE:
            texts[row.follows] = f"{row.name} is {apart:+.1f} deg from it"
    return texts
