"""Koch v1.1, follower and leader: six Dynamixels. Joints and settings are LeRobot's, so its calibrations are ours."""

from __future__ import annotations

from hotpolicy.robots.servo.dynamixel import DYNAMIXEL
from hotpolicy.robots.servo.dynamixel_registers import Mode
from hotpolicy.robots.servo.tables import ArmTable, ServoJoint

XL430_W250, XL330_M288, XL330_M077 = 1060, 1200, 1190

# Over several turns, as a horn may have been screwed on so that a joint crosses the end of the servo's one turn.
BODY = (("return_delay", 0), ("mode", Mode.EXTENDED))
ELBOW = (*BODY, ("position_p_gain", 1500), ("position_i_gain", 0), ("position_d_gain", 600))
GRIPPER = (("return_delay", 0), ("mode", Mode.CURRENT_POSITION))  # closes on a thing without crushing it

KOCH_FOLLOWER = ArmTable(
    name="koch_follower",
    family=DYNAMIXEL,
    joints=(
        ServoJoint("shoulder_pan", 1, XL430_W250, whole_turn=True, settings=BODY, turns=True),
        ServoJoint("shoulder_lift", 2, XL430_W250, settings=BODY, turns=True),
        ServoJoint("elbow_flex", 3, XL330_M288, settings=ELBOW, turns=True),
        ServoJoint("wrist_flex", 4, XL330_M288, settings=BODY, turns=True),
        ServoJoint("wrist_roll", 5, XL330_M288, whole_turn=True, settings=BODY, turns=True),
        ServoJoint("gripper", 6, XL330_M288, unit="percent", settings=GRIPPER, turns=True),
    ),
    calibration_names=("koch_follower",),
)

KOCH_LEADER = ArmTable(
    name="koch_leader",
    family=DYNAMIXEL,
    joints=(
        ServoJoint("shoulder_pan", 1, XL330_M077, whole_turn=True, settings=BODY, turns=True),
        ServoJoint("shoulder_lift", 2, XL330_M077, settings=BODY, turns=True),
        ServoJoint("elbow_flex", 3, XL330_M077, drive_mode=1, settings=BODY, turns=True),
        ServoJoint("wrist_flex", 4, XL330_M077, settings=BODY, turns=True),
        ServoJoint("wrist_roll", 5, XL330_M077, whole_turn=True, settings=BODY, turns=True),
        ServoJoint("gripper", 6, XL330_M077, unit="percent", settings=GRIPPER, turns=True),
    ),
    calibration_names=("koch_leader",),
    leader=True,
)
