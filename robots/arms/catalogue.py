"""All arms by the name a profile gives them."""

from __future__ import annotations

from hotpolicy.robots.arms.interbotix import VIPERX_300, WIDOWX_250_LEADER
from hotpolicy.robots.arms.koch import KOCH_FOLLOWER, KOCH_LEADER
from hotpolicy.robots.arms.so import SO100_FOLLOWER, SO100_LEADER, SO101_FOLLOWER, SO101_LEADER
from hotpolicy.robots.servo.tables import ArmTable
from hotpolicy.runtime.errors import ConfigError

ARMS = {
    table.name: table
    for table in (
        SO101_FOLLOWER, SO101_LEADER, SO100_FOLLOWER, SO100_LEADER, KOCH_FOLLOWER, KOCH_LEADER, VIPERX_300,
        WIDOWX_250_LEADER,
    )
}  # fmt: skip


def arm_table(name: str) -> ArmTable:
    """Raises ConfigError that lists what there is."""
    if name not in ARMS:
        raise ConfigError(f"arm: expected one of {', '.join(ARMS)}, got {name!r}")
    return ARMS[name]
