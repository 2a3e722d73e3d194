"""Arms as tables of data, one file for each make, and all of them by name."""

from __future__ import annotations

from hotpolicy.robots.arms import interbotix, koch, so
from hotpolicy.robots.servo.tables import ArmTable
from hotpolicy.runtime.errors import ConfigError

TABLES = (
    so.SO101_FOLLOWER,
    so.SO101_LEADER,
    so.SO100_FOLLOWER,
    so.SO100_LEADER,
    koch.KOCH_FOLLOWER,
    koch.KOCH_LEADER,
    interbotix.VIPERX_300,
    interbotix.WIDOWX_250_LEADER,
)
ARMS = {table.name: table for table in TABLES}


def arm_table(name: str) -> ArmTable:
    """Raises ConfigError that lists the arms there are."""
    if name not in ARMS:
        raise ConfigError(f"arm: expected one of {', '.join(ARMS)}, got {name!r}")
    return ARMS[name]
