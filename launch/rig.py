"""A robot as its profile describes it, opened: the arm behind its limits, its cameras, and what paces its loop."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from hotpolicy.launch.profile import ArmProfile, CameraProfile, Profile, load_profile
from hotpolicy.robots.arms.catalogue import ARMS
from hotpolicy.robots.bimanual import BimanualArm
from hotpolicy.robots.feed import Feed
from hotpolicy.robots.limits import JointLimit, LimitedArm, Limits
from hotpolicy.robots.loop import ControlLoop, EpisodeReport, Pacer
from hotpolicy.robots.park import park
from hotpolicy.robots.plugins import Seeing, make_arm, make_camera
from hotpolicy.robots.robot import Arm, Camera
from hotpolicy.robots.servo.arm import ServoArm, connect
from hotpolicy.robots.servo.bus import Timing
from hotpolicy.robots.sim.client import LockStep, VirtualCamera, VirtualWorld
from hotpolicy.robots.sim.tasks import Task
from hotpolicy.robots.sources import Source
from hotpolicy.robots.stop import FileLatch, Sentry
from hotpolicy.runtime.clock import Deadline, Rate
from hotpolicy.runtime.errors import BusBusy, BusLost, ConfigError
from hotpolicy.runtime.messages import CameraSpec, RobotSpec

DEFAULT_EPISODE_S = 30.0
COME_BACK_S, LOOK_S = 20.0, 0.5  # how long an unplugged arm is waited for, and how often it is looked for

log = logging.getLogger(__name__)


@dataclass
class Rig:
    """Use as a context manager. Nothing moves before `torque`. At the end, also after an error, Ctrl-C or SIGTERM, the
    arm parks and holds, and keeps its torque; a second Ctrl-C meanwhile freezes it where it is. In lock-step, where
    time has stopped, it only holds."""

    profile: Profile
    arm: LimitedArm
    cameras: Sequence[Camera]
    world: VirtualWorld | None  # the simulator around a virtual arm
    pacer: Pacer
    sentry: Sentry  # lets `hotpolicy stop` in

    @classmethod
    def open(cls, profile: Profile | str | Path) -> Rig:
        """Connect to the arm and the cameras. Raises ConfigError, BusLost, BusBusy, WrongServo, CalibrationError,
        CameraLost; whatever was opened is closed again then."""
        if not isinstance(profile, Profile):
            profile = load_profile(profile)
        with ExitStack() as undo:
            bare = _connect(profile, undo)
            world = VirtualWorld(profile.world) if profile.world else None
            if world:
                undo.callback(world.close)
            cameras = []
            for camera in profile.cameras:
                cameras.append(_camera(camera, world, bare))
                undo.callback(cameras[-1].close)
            arm = LimitedArm(bare, limits_of(profile), latch=FileLatch(profile.identity))
            stepped = world is not None and not world.moment.realtime
            pacer: Pacer = LockStep(world, arrived=_arrived(bare)) if world and stepped else Rate(profile.rate_hz)
            sentry = Sentry(arm, profile.identity, watch=not stepped)
            undo.pop_all()
        return cls(profile, arm, cameras, world, pacer, sentry)

    @property
    def stepped(self) -> bool:
        """Whether time stands still between ticks."""
        return isinstance(self.pacer, LockStep)

    def set_scene(self, task: str, seed: int) -> None:
        """In a simulation: clear the table for `task`. Does nothing for an arm of metal. Raises BadRequest for an
        instruction the simulator does not know."""
        if self.world is not None:
            self.world.reset(task, seed)
            self.arm.hold()  # it stands elsewhere now

    def episode(
        self, task: str, source: Source, feeds: Sequence[Feed] = (), longest_s: float | None = None, linger: int = 0
    ) -> EpisodeReport:
        """One episode of the control loop. In a simulation the referee ends it, else the source or the clock."""
        loop = ControlLoop(self.arm, self.cameras, self.pacer, feeds)
        if self.world is None or longest_s is not None:
            ticks = round((longest_s or DEFAULT_EPISODE_S) * self.profile.rate_hz)
        else:
            ticks = Task.parse(task).time_limit
        return loop.run(task, source, ticks, self._judge if self.world else None, linger)

    def recover(self, lost: BusLost) -> None:
        """Wait for an arm that was unplugged to be plugged in again, verify it, and switch it on where it is now.
        Raises `lost` when it does not come back, and what verifying it raises."""
        log.error("%s; waiting %g s for it to come back", lost, COME_BACK_S)
        until = Deadline.after(COME_BACK_S)
        while True:
            time.sleep(LOOK_S)
            try:
                self.arm.reconnect()
                break
            except (BusLost, BusBusy):  # busy: its old device name is another's meanwhile
                if until.passed():
                    raise lost from None
        self.arm.torque(True)
        log.warning("the arm is back")

    def park(self) -> None:
        """Raises StopUnconfirmed when a second Ctrl-C could not freeze the arm."""
        if self.stepped:
            return
        try:
            park(self.arm, self.pacer)
        except KeyboardInterrupt:
            self.arm.freeze("Ctrl-C twice")
            raise

    def close(self) -> None:
        self.sentry.close()
        self.arm.close()
        for camera in self.cameras:
            camera.close()
        if self.world is not None:
            self.world.close()

    def __enter__(self) -> Rig:
        _on_sigterm(signal.SIG_DFL, _leave)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.park()
        finally:
            self.close()
            _on_sigterm(_leave, signal.SIG_DFL)

    def _judge(self) -> bool | None:
        assert self.world is not None
        moment = self.world.look() if self.world.moment.realtime else self.world.moment
        return True if moment.success else False if moment.over else None


def limits_of(profile: Profile) -> Limits:
    joints = (JointLimit(j.low, j.high, j.max_step, j.max_lead, j.lever) for j in profile.joints)
    return Limits(
        tuple(joints),
        profile.watchdog_s,
        tool_step=profile.tool_speed / profile.rate_hz,
        fallback=profile.fallback,
        fallback_s=profile.fallback_s,
        tick_s=0.9 / profile.rate_hz,  # a loop's own ticks come a little early now and then
        safe_pose=profile.safe_pose,
    )


def _on_sigterm(before: Any, after: Any) -> None:
    """Put one handler in the other's place; one that somebody else has set stays. Only the main thread may."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is before:
        signal.signal(signal.SIGTERM, after)


def _leave(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends a program as an error would: the arm is parked on the way out."""
    raise SystemExit(128 + number)


def virtual_profile(folder: Path, number: int, endpoint: str, control: str) -> Profile:
    """The shipped virtual arm, with port and sockets of its own in `folder`, so that several can run at once."""
    shipped = load_profile("virtual_so101")
    return replace(
        shipped,
        arms=(replace(shipped.arms[0], port=str(folder / f"arm{number}")),),
        world=f"ipc://{folder}/arm{number}.world",
        endpoint=endpoint,
        control=control,
    )


def _connect(profile: Profile, undo: ExitStack) -> Arm:
    """The arm, or both; whoever unwinds `undo` closes them."""
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


def _arrived(arm: Arm) -> Callable[[], object]:
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


def _camera(camera: CameraProfile, world: VirtualWorld | None, arm: Arm) -> Camera:
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
