"""SO-100 and SO-101, follower and leader: six STS3215. The makes differ in gears and prints, not in what a bus sees."""

from __future__ import annotations

from hotpolicy.robots.calibration import SO_FOLLOWER_NAMES, SO_LEADER_NAMES
from hotpolicy.robots.servo.feetech import FEETECH
from hotpolicy.robots.servo.tables import ArmTable, ServoJoint

STS3215 = 777

# As LeRobot sets them, so that a policy trained on its datasets moves the arm in the same way.
QUICK = (("return_delay", 0), ("max_acceleration", 254), ("acceleration", 254))
BODY = (*QUICK, ("mode", 0), ("p_gain", 16), ("i_gain", 0), ("d_gain", 32))
# The gripper presses against what it holds for minutes: half the torque, and a quarter once it is overloaded.
GRIPPER = (*BODY, ("max_torque", 500), ("protection_current", 250), ("overload_torque", 25))

Settings = tuple[tuple[str, int], ...]


def _joints(body: Settings = (), gripper: Settings = ()) -> tuple[ServoJoint, ...]:
    return (
        ServoJoint("shoulder_pan", 1, STS3215, settings=body),
        ServoJoint("shoulder_lift", 2, STS3215, settings=body),
        ServoJoint("elbow_flex", 3, STS3215, settings=body),
        ServoJoint("wrist_flex", 4, STS3215, settings=body),
        ServoJoint("wrist_roll", 5, STS3215, whole_turn=True, settings=body),
        ServoJoint("gripper", 6, STS3215, unit="percent", settings=gripper),
    )


SO101_FOLLOWER = ArmTable("so101_follower", FEETECH, _joints(BODY, GRIPPER), SO_FOLLOWER_NAMES)
SO101_LEADER = ArmTable("so101_leader", FEETECH, _joints(), SO_LEADER_NAMES, leader=True)
SO100_FOLLOWER = ArmTable("so100_follower", FEETECH, _joints(BODY, GRIPPER), SO_FOLLOWER_NAMES)
SO100_LEADER = ArmTable("so100_leader", FEETECH, _joints(), SO_LEADER_NAMES, leader=True)
