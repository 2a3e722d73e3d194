"""A robot's profile as data: its port, calibration, cameras, limits and rate."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hotpolicy.robots.limits import Fallback
from hotpolicy.robots.plugins import PluginUse
from hotpolicy.runtime.chunks import Chunking
from hotpolicy.runtime.messages import CameraSpec, Joint, RobotSpec


@dataclass(frozen=True, slots=True)
class JointProfile:
    """One joint and the furthest it may go, in all and in one tick."""

    name: str  # the servo's name in the calibration file, e.g. "shoulder_pan"
    unit: str  # "deg" or "percent"
    low: float  # in that unit
    high: float
    max_step: float  # largest change of the goal in one tick, in that unit
    max_lead: float | None  # largest distance of the goal from the present position; None: any
    lever: float  # mm from its axis to the furthest the tool can be; 0: it does not move the tool


@dataclass(frozen=True, slots=True)
class ArmProfile:
    """One arm on one port."""

    kind: str  # a name in robots/arms/catalogue.py
    port: str  # serial device, best by its stable name
    baudrate: int
    calibration: Path


@dataclass(frozen=True, slots=True)
class CameraProfile:
    name: str
    source: str  # "world" for the virtual arm's camera, "arm" for an arm's own, else a device, file or URL
    height: int  # pixels
    width: int
    plugin: PluginUse | None = None  # a camera of another package; `source` is then its name


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything about one robot that does not change while it runs."""

    file: Path
    name: str
    rate_hz: float  # control ticks per second
    arms: tuple[ArmProfile, ...]  # one; or left and right of a pair, with joints left_... and right_...; or a plug-in's
    plugin: PluginUse | None  # an arm of another package; there are no `arms` then
    kinematics: str | None  # a name in robots/kinematics.py, for keys that move the tool
    leader: tuple[ArmProfile, ...]  # the arm, or pair, that a person moves to show what to do; empty: none
    teleoperators: Mapping[str, PluginUse]  # of other packages, by plug-in name
    joints: tuple[JointProfile, ...]
    cameras: tuple[CameraProfile, ...]
    watchdog_s: float  # without a fresh action for this long the arm holds
    fallback: Fallback  # what becomes of an arm that has held so for `fallback_s`
    fallback_s: float
    safe_pose: tuple[float, ...] | None  # in the order of the joints: where the arm parks
    tool_speed: float  # mm/s
    chunking: Chunking  # how the robot comes from one chunk of actions to the next, see runtime/chunks.py
    endpoint: str  # the policy server's data socket
    control: str  # the policy server's control socket
    key: Path | None  # this robot's secret key and that server's public one, where it asks for keys; None: none
    server_key: Path | None
    world: str | None  # the simulator's socket; None for an arm of metal
    standby: tuple[str, ...] = ()  # data sockets of servers that are asked while that one gives no answer

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Data sockets of the policy servers, the preferred one first."""
        return (self.endpoint, *self.standby)

    @property
    def identity(self) -> str:
        """What tells this robot from others of its name: a stop is kept under it, and its socket is called so."""
        ports = " ".join(arm.port for arm in self.arms) or str(self.plugin)
        return f"{self.name}-{hashlib.sha256(ports.encode()).hexdigest()[:8]}"

    @property
    def spec(self) -> RobotSpec:
        """What the policy and this robot must agree on, with LeRobot's joint names."""
        return RobotSpec(
            joints=tuple(Joint(f"{j.name}.pos", j.unit, j.low, j.high) for j in self.joints),
            cameras=tuple(CameraSpec(c.name, c.height, c.width) for c in self.cameras),
            rate_hz=self.rate_hz,
        )
