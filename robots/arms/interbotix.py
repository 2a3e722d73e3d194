"""ViperX 300 and WidowX 250, the arms of ALOHA: nine Dynamixels for seven joints.

Shoulder and elbow have two servos each. The second is a shadow: by its register `shadow_id` it obeys what is written to
the first, so the two never get different goals; it is mounted the other way round, hence its drive mode.
"""

from __future__ import annotations

from hotpolicy.robots.servo.dynamixel import DYNAMIXEL
from hotpolicy.robots.servo.dynamixel_registers import NO_SHADOW, Mode
from hotpolicy.robots.servo.tables import ArmTable, ServoJoint

XM430_W350, XM540_W270, XL430_W250, XC430_W150 = 1020, 1120, 1060, 1070

BODY = (("return_delay", 0), ("mode", Mode.EXTENDED), ("shadow_id", NO_SHADOW))
GRIPPER = (("return_delay", 0), ("mode", Mode.CURRENT_POSITION))
FOLLOWS_SHOULDER = (("return_delay", 0), ("mode", Mode.EXTENDED), ("shadow_id", 2))
FOLLOWS_ELBOW = (("return_delay", 0), ("mode", Mode.EXTENDED), ("shadow_id", 4))

VIPERX_300 = ArmTable(
    name="viperx_300",
    family=DYNAMIXEL,
    joints=(
        ServoJoint("waist", 1, XM540_W270, whole_turn=True, settings=BODY, turns=True),
        ServoJoint("shoulder", 2, XM540_W270, settings=BODY, turns=True),
        ServoJoint("elbow", 4, XM540_W270, settings=BODY, turns=True),
        ServoJoint("forearm_roll", 6, XM540_W270, whole_turn=True, settings=BODY, turns=True),
        ServoJoint("wrist_angle", 7, XM540_W270, settings=BODY, turns=True),
        ServoJoint("wrist_rotate", 8, XM430_W350, whole_turn=True, settings=BODY, turns=True),
        ServoJoint("gripper", 9, XM430_W350, unit="percent", settings=GRIPPER, turns=True),
    ),
    shadows=(
        ServoJoint(
            "shoulder_shadow", 3, XM540_W270, drive_mode=1, settings=FOLLOWS_SHOULDER, turns=True, follows="shoulder"
        ),
        ServoJoint("elbow_shadow", 5, XM540_W270, drive_mode=1, settings=FOLLOWS_ELBOW, turns=True, follows="elbow"),
    ),
    calibration_names=("viperx",),
)

WIDOWX_250_LEADER = ArmTable(
    name="widowx_250_leader",
    family=DYNAMIXEL,
    joints=(
        ServoJoint("waist", 1, XM430_W350, whole_turn=True, settings=BODY, turns=True),
        ServoJoint("shoulder", 2, XM430_W350, settings=BODY, turns=True),
        ServoJoint("elbow", 4, XM430_W350, settings=BODY, turns=True),
        ServoJoint("forearm_roll", 6, XM430_W350, whole_turn=True, settings=BODY, turns=True),
        ServoJoint("wrist_angle", 7, XM430_W350, settings=BODY, turns=True),
        ServoJoint("wrist_rotate", 8, XL430_W250, whole_turn=True, settings=BODY, turns=True),
        ServoJoint("gripper", 9, XC430_W150, unit="percent", settings=(("return_delay", 0),), turns=True),
    ),
    shadows=(
        ServoJoint(
            "shoulder_shadow", 3, XM430_W350, drive_mode=1, settings=FOLLOWS_SHOULDER, turns=True, follows="shoulder"
        ),
        ServoJoint("elbow_shadow", 5, XM430_W350, drive_mode=1, settings=FOLLOWS_ELBOW, turns=True, follows="elbow"),
    ),
    calibration_names=("widowx",),
    leader=True,
)
