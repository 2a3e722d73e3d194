"""A robot as its profile describes it, opened: the arm behind its limits, its cameras, and what paces its loop."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from hotpolicy.launch.devices import arrived, camera_of, connect_robot
from hotpolicy.launch.profile import Profile
from hotpolicy.launch.profile_file import load_profile
from hotpolicy.robots.feed import Feed
from hotpolicy.robots.limits import JointLimit, LimitedArm, Limits
from hotpolicy.robots.loop import ControlLoop, EpisodeReport, Pacer
from hotpolicy.robots.park import park
from hotpolicy.robots.robot import Camera
from hotpolicy.robots.sim.client import LockStep, VirtualWorld
from hotpolicy.robots.sim.tasks import Task
from hotpolicy.robots.sources import Source
from hotpolicy.robots.stop import FileLatch, Sentry
from hotpolicy.runtime.clock import Deadline, Rate
from hotpolicy.runtime.errors import BusBusy, BusLost

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
            bare = connect_robot(profile, undo)
            world = VirtualWorld(profile.world) if profile.world else None
            if world:
                undo.callback(world.close)
            cameras = []
            for camera in profile.cameras:
                cameras.append(camera_of(camera, world, bare))
                undo.callback(cameras[-1].close)
            arm = LimitedArm(bare, limits_of(profile), latch=FileLatch(profile.identity))
            stepped = world is not None and not world.moment.realtime
            pacer: Pacer = LockStep(world, arrived=arrived(bare)) if world and stepped else Rate(profile.rate_hz)
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
