"""The devices that a profile names, opened: one arm or two, and cameras."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from hotpolicy.launch.profile import ArmProfile, CameraProfile, Profile
from hotpolicy.robots.arms.catalogue import ARMS
from hotpolicy.robots.bimanual import BimanualArm
from hotpolicy.robots.plugins import Seeing, make_arm, make_camera
from hotpolicy.robots.robot import Arm, Camera
from hotpolicy.robots.servo.arm import ServoArm, connect
from hotpolicy.robots.servo.bus import Timing
from hotpolicy.robots.sim.client import VirtualCamera, VirtualWorld
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.messages import CameraSpec, RobotSpec


def connect_robot(profile: Profile, undo: ExitStack) -> Arm:
    """The arm of a profile, or both, or a plug-in's; whoever unwinds `undo` closes them."""
    if profile.plugin is not None:
        made = make_arm(profile.plugin, profile.spec)
        undo.callback(made.close)
        return made
    return connect_arms(profile.arms, profile.spec, undo)


def connect_arms(arms: Sequence[ArmProfile], spec: RobotSpec | None, undo: ExitStack) -> ServoArm | BimanualArm:
    """One arm, or two as one; whoever unwinds `undo` closes them."""

    def opened(arm: ArmProfile, spec: RobotSpec | None) -> ServoArm:
        one = connect(arm.port, arm.calibration, table=ARMS[arm.kind], spec=spec, timing=_timing(arm))
        undo.callback(one.close)
        return one

    if len(arms) == 1:
        return opened(arms[0], spec)
    left, right = (opened(arm, None) for arm in arms)
    return BimanualArm(left, right, spec)


def arrived(arm: Arm) -> Callable[[], object]:
    """Comes back when the servos have taken what was sent: they answer in order."""
    if not isinstance(arm, ServoArm):
        raise ConfigError("world: a simulator in lock-step has one arm of servos, this profile has another")
    return lambda: arm.bus.ping(arm.table.joints[0].id)


def _timing(arm: ArmProfile) -> Timing:
    """Servos answer within microseconds; a program behind a pseudo-terminal shares its processor with whatever else
    runs."""
    if os.path.realpath(arm.port).startswith("/dev/pts/"):
        return Timing(baud=arm.baudrate, margin_ms=1000.0, budget_ms=3000.0)
    return Timing(baud=arm.baudrate)


def camera_of(camera: CameraProfile, world: VirtualWorld | None, arm: Arm) -> Camera:
    spec = CameraSpec(camera.name, camera.height, camera.width)
    if camera.plugin is not None:
        return make_camera(camera.plugin, spec)
    if camera.source == "arm":
        if not isinstance(arm, Seeing):
            raise ConfigError(f"cameras.{camera.name}.source: 'arm' is for arms that bring cameras, this has none")
        return arm.camera(spec)
    if camera.source == "world":
        if world is None:
            raise ConfigError(f"cameras.{camera.name}.source: 'world' is for virtual arms, this profile has none")
        return VirtualCamera(world, camera.name)
    from hotpolicy.robots.camera import open_camera

    return open_camera(camera.name, camera.source, camera.height, camera.width)
