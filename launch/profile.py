"""A robot's profile: its port, calibration, cameras, limits and rate, read from one YAML file and checked once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from hotpolicy.launch.fields import Fields
from hotpolicy.robots.kinematics import CHAINS
from hotpolicy.robots.limits import TOOL_SPEED, Fallback
from hotpolicy.robots.plugins import PluginUse
from hotpolicy.runtime.chunks import Chunking
from hotpolicy.runtime.errors import CalibrationError, ConfigError
from hotpolicy.runtime.messages import CameraSpec, Joint, RobotSpec

if TYPE_CHECKING:
    from hotpolicy.robots.servo.tables import ArmTable

LEVER = 1000.0  # mm, assumed of a joint whose profile does not say: few desk arms reach that far

SHIPPED = Path(__file__).parent / "configs"


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


def find_profile(name: str) -> Path:
    """A path as given; else NAME.yaml in ~/.config/hotpolicy, else among those that come with hotpolicy.
    Raises ConfigError that lists what there is."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        return Path(name).expanduser()
    own = Path(os.environ.get("XDG_CONFIG_HOME", "~/.config")).expanduser() / "hotpolicy"
    for folder in (own, SHIPPED):
        if (file := folder / f"{name}.yaml").is_file():
            return file
    known = sorted({file.stem for folder in (own, SHIPPED) for file in folder.glob("*.yaml")})
    raise ConfigError(f"robot: expected one of {', '.join(known)} or the path of a YAML file, got {name!r}")


def load_profile(name: str | Path) -> Profile:
    """Read and check a profile. Raises ConfigError, one line, naming file and field."""
    file = find_profile(str(name))
    fields = Fields.read(file)
    section, server = fields.section("arm"), fields.section("server")
    plugin = _plugin(section)
    joints = _joints(fields.section("joints"))
    profile = Profile(
        file=file,
        name=fields.text("name"),
        rate_hz=fields.number("rate_hz", above=0, at_most=1000, unit="Hz"),
        arms=() if plugin else _arms(file, section),
        plugin=plugin,
        kinematics=fields.text("kinematics", choices=tuple(CHAINS)) if fields.has("kinematics") else None,
        leader=_arms(file, fields.section("leader"), "so101_leader") if fields.has("leader") else (),
        teleoperators=_teleoperators(fields),
        joints=joints,
        cameras=_cameras(fields.section("cameras")),
        watchdog_s=fields.number("watchdog_s", above=0, at_most=10, unit="s"),
        fallback=_fallback(fields),
        fallback_s=fields.number("fallback_s", above=0, at_most=3600, unit="s") if fields.has("fallback_s") else 10.0,
        safe_pose=_safe_pose(fields, joints),
        tool_speed=fields.number("tool_speed", above=0, unit="mm/s") if fields.has("tool_speed") else TOOL_SPEED,
        chunking=_chunking(fields),
        endpoint=_endpoint(server, "endpoint"),
        control=_endpoint(server, "control"),
        key=_beside(file, server, "key"),
        server_key=_beside(file, server, "server_key"),
        world=_endpoint(fields, "world") if fields.has("world") else None,
        standby=tuple(_socket(server, "standby", one) for one in server.texts("standby"))
        if server.has("standby")
        else (),
    )
    for part in (section, server, fields):
        part.done()
    if profile.fallback == "safe_pose" and profile.safe_pose is None:
        raise ConfigError(f"{file}: safe_pose: missing, expected one as fallback is safe_pose")
    if profile.world is None and any(camera.source == "world" for camera in profile.cameras):
        raise ConfigError(f"{file}: world: missing, expected the simulator's socket as a camera's source is 'world'")
    return profile


def _plugin(fields: Fields) -> PluginUse | None:
    return PluginUse(fields.text("plugin"), fields.options("options")) if fields.has("plugin") else None


def _teleoperators(fields: Fields) -> dict[str, PluginUse]:
    """Options of teleoperator plug-ins, each under its plug-in's name."""
    if not fields.has("teleoperators"):
        return {}
    section = fields.section("teleoperators")
    return {name: PluginUse(name, section.options(name)) for name in section.left()}


def _arms(file: Path, section: Fields, kind: str = "so101_follower") -> tuple[ArmProfile, ...]:
    if not section.has("left"):
        return (_arm(file, section, kind),)
    pair = _arm(file, section.section("left"), kind), _arm(file, section.section("right"), kind)
    section.done()
    return pair


def _arm(file: Path, arm: Fields, kind: str) -> ArmProfile:
    from hotpolicy.robots.arms.catalogue import ARMS

    table = ARMS[arm.text("kind", choices=tuple(ARMS)) if arm.has("kind") else kind]
    profile = ArmProfile(table.name, arm.text("port"), _baudrate(arm, table), _calibration(file, arm, table))
    arm.done()
    return profile


def _calibration(file: Path, arm: Fields, table: ArmTable) -> Path:
    """A .json file, its path taken from the profile's folder; anything else is an id in LeRobot's own folders."""
    from hotpolicy.robots.calibration import find_calibration

    name = arm.text("calibration")
    if not name.endswith(".json"):
        try:
            return find_calibration(name, table.calibration_names, "teleoperators" if table.leader else "robots")
        except CalibrationError as error:
            raise ConfigError(f"{file}: arm.calibration: {error}") from error
    path = file.parent / Path(name).expanduser()
    if not path.is_file():
        raise ConfigError(f"{file}: arm.calibration: expected a file, there is none at {path}")
    return path


def _baudrate(arm: Fields, table: ArmTable) -> int:
    rate, offered = arm.whole("baudrate"), table.family.baud_rates.values()
    if rate not in offered:
        raise arm.error("baudrate", f"one of {', '.join(map(str, offered))}", rate)
    return rate


def _endpoint(fields: Fields, key: str) -> str:
    return _socket(fields, key, fields.text(key))


def _socket(fields: Fields, key: str, value: str) -> str:
    if not value.startswith(("tcp://", "ipc://")) or len(value) <= len("tcp://"):
        raise fields.error(key, "tcp://HOST:PORT or ipc:///PATH", value)
    return value


def _beside(file: Path, fields: Fields, key: str) -> Path | None:
    """A path that the profile may give, taken from its own folder."""
    return file.parent / Path(fields.text(key)).expanduser() if fields.has(key) else None


def _joints(fields: Fields) -> tuple[JointProfile, ...]:
    joints = []
    for name, joint in fields.sections():
        unit = joint.text("unit", choices=("deg", "percent"))
        turn = 360.0 if unit == "deg" else 100.0
        low = joint.number("low", at_most=turn, unit=unit)
        high = joint.number("high", above=low, at_most=turn, unit=unit)
        step = joint.number("max_step", above=0, at_most=turn, unit=unit)
        lead = joint.number("max_lead", above=0, at_most=turn, unit=unit) if joint.has("max_lead") else None
        known = joint.has("lever")
        lever = joint.number("lever", above=-1e-9, unit="mm") if known else LEVER if unit == "deg" else 0.0
        joints.append(JointProfile(name, unit, low, high, step, lead, lever))
        joint.done()
    if not joints:
        raise ConfigError(f"{fields.file}: joints: expected at least one joint")
    return tuple(joints)


def _fallback(fields: Fields) -> Fallback:
    return cast("Fallback", fields.text("fallback", choices=get_args(Fallback)) if fields.has("fallback") else "hold")


def _chunking(fields: Fields) -> Chunking:
    return cast("Chunking", fields.text("chunking", choices=get_args(Chunking)) if fields.has("chunking") else "rtc")


def _safe_pose(fields: Fields, joints: Sequence[JointProfile]) -> tuple[float, ...] | None:
    if not fields.has("safe_pose"):
        return None
    section = fields.section("safe_pose")
    pose = tuple(section.number(joint.name, at_most=joint.high, unit=joint.unit) for joint in joints)
    section.done()
    for joint, value in zip(joints, pose, strict=True):
        if value < joint.low:
            raise section.error(joint.name, f"a number from {joint.low:g} {joint.unit}", value)
    return pose


def _cameras(fields: Fields) -> tuple[CameraProfile, ...]:
    cameras = []
    for name, camera in fields.sections():
        plugin = _plugin(camera)
        source = plugin.name if plugin else camera.text("source")
        height, width = (camera.whole(key, above=7, at_most=4096) for key in ("height", "width"))
        cameras.append(CameraProfile(name, source, height, width, plugin))
        camera.done()
    return tuple(cameras)
