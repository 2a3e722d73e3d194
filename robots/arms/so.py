"""SO-100 and SO-101, follower and leader: six STS3215. The makes differ in gears and prints, not in what a bus sees."""

from __future__ import annotations

from hotpolicy.robots.calibration import SO_FOLLOWER_NAMES, SO_LEADER_NAMES
from hotpolicy.robots.servo.feetech import FEETECH
from hotpolicy.robots.servo.tables import ArmTable, ServoJoint

STS3215 = 777

JOINTS = (
    ServoJoint("shoulder_pan", 1, STS3215),
    ServoJoint("shoulder_lift", 2, STS3215),
    ServoJoint("elbow_flex", 3, STS3215),
    ServoJoint("wrist_flex", 4, STS3215),
    ServoJoint("wrist_roll", 5, STS3215, whole_turn=True),
    ServoJoint("gripper", 6, STS3215, unit="percent"),
)

SO101_FOLLOWER = ArmTable("so101_follower", FEETECH, JOINTS, SO_FOLLOWER_NAMES)
SO101_LEADER = ArmTable("so101_leader", FEETECH, JOINTS, SO_LEADER_NAMES, leader=True)
SO100_FOLLOWER = ArmTable("so100_follower", FEETECH, JOINTS, SO_FOLLOWER_NAMES)
SO100_LEADER = ArmTable("so100_leader", FEETECH, JOINTS, SO_LEADER_NAMES, leader=True)
