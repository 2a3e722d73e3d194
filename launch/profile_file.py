"""A robot's profile, read from one YAML file and checked once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from hotpolicy.launch.fields import Fields
from hotpolicy.launch.profile import ArmProfile, CameraProfile, JointProfile, Profile
from hotpolicy.robots.kinematics import CHAINS
from hotpolicy.robots.limits import TOOL_SPEED, Fallback
from hotpolicy.robots.plugins import PluginUse
from hotpolicy.runtime.chunks import Chunking
from hotpolicy.runtime.errors import CalibrationError, ConfigError

if TYPE_CHECKING:
    from hotpolicy.robots.servo.tables import ArmTable

SHIPPED = Path(__file__).parent / "configs"
LEVER = 1000.0  # mm, assumed of a joint whose profile does not say: few desk arms reach that far


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
