"""How an arm is left: parked and held. Torque stays on."""

from __future__ import annotations

import logging

import numpy as np

from hotpolicy.robots.limits import LimitedArm
from hotpolicy.robots.loop import Pacer
from hotpolicy.runtime.clock import Deadline
from hotpolicy.runtime.errors import RobotError

log = logging.getLogger(__name__)

PARK_S = 3.0  # longest
NEAR = 1.0  # deg or percent: there


def park(arm: LimitedArm, pacer: Pacer, longest_s: float = PARK_S) -> bool:
    """Go to the safe pose, or to where the arm stood before it was first moved; within the limits, for at most
    `longest_s`; then hold. True when it arrived. An arm that is released, stopped or was never moved stays as it is.

    What goes wrong is logged and ends the parking: this is done on the way out, often because of an error that is the
    one to be told.
    """
    pose = arm.rest_pose if arm.limits.safe_pose is None else np.array(arm.limits.safe_pose)
    if pose is None or not arm.torque_on or arm.latch.reason is not None:
        return False
    try:
        until = Deadline.after(longest_s)
        arrived = False
        while not arrived and not until.passed():
            arrived = bool(np.abs(arm.read().positions - pose).max() <= NEAR)
            arm.send(pose)
            pacer.wait()
        arm.hold()
        return arrived
    except RobotError as error:
        log.warning("not parked: %s", error)
        return False
