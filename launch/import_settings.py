"""What a checkpoint cannot say about its robot, from a preset that comes along or a user's own YAML file, and flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from hotpolicy.launch.fields import Fields
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.messages import CameraSpec, Joint

if TYPE_CHECKING:
    from hotpolicy.runtime.checkpoint.settings import Settings, Trained

PRESETS = Path(__file__).parent / "presets"
NOTHING = "none"  # a slot without a camera, or no relative joint


@dataclass(frozen=True, slots=True)
class Flags:
    """What was said on the command line; None and empty: nothing."""

    horizon: int | None = None
    steps: int | None = None
    max_tokens: int | None = None
    prompt: str | None = None
    normalisation: str | None = None
    relative: str | None = None  # joint names with commas between, "all" or "none"
    rate_hz: float | None = None
    slots: Sequence[str] = ()  # "left_wrist_0_rgb=wrist" or "right_wrist_0_rgb=none"
    cameras: Sequence[str] = ()  # "wrist=480x640", height first


def presets() -> list[str]:
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


def load_settings(preset: str | None, file: Path | None, flags: Flags) -> Settings:
    """Raises ConfigError naming file or flag, what was expected and what was found."""
    if (preset is None) == (file is None):
        raise ConfigError(
            "give either --preset or --settings: a checkpoint does not say its robot's joints, units, limits and rate; "
            f"presets: {', '.join(presets())}"
        )
    if preset is not None and preset not in presets():
        raise ConfigError(f"--preset: expected one of {', '.join(presets())}, got {preset!r}; or give --settings FILE")
    return _with_flags(read_settings(file or PRESETS / f"{preset}.yaml", preset), flags)


def read_settings(file: Path, preset: str | None = None) -> Settings:
    """A settings file. The shipped presets are examples of one."""
    from hotpolicy.runtime.checkpoint.settings import Settings, Trained
    from hotpolicy.runtime.checkpoint.sizes import Heads

    fields = Fields.read(file)
    joints, acting = _joints(fields.section("joints"))
    names = tuple(joint.name for joint in joints)
    both = _trained(fields, names)
    trained = {}
    for pi05, section in ((False, "pi0"), (True, "pi05")):
        family = fields.section(section) if fields.has(section) else None
        trained[pi05] = (_trained(family, names) if family else Trained()).over(both)
        if family:
            family.done()
    settings = Settings(
        origin=f"preset {preset}" if preset else str(file),
        joints=joints,
        acting=acting,
        cameras=_cameras(fields.section("cameras")) if fields.has("cameras") else (),
        slots=_slots(fields.section("slots")) if fields.has("slots") else {},
        rate_hz=fields.number("rate_hz", above=0, at_most=1000, unit="Hz"),
        trained=trained,
        heads=Heads(*(fields.whole(key) if fields.has(key) else None for key in ("head_dim", "vision_heads"))),
        preset=preset is not None,
        note=fields.text("note").strip() if fields.has("note") else "",
    )
    fields.done()
    return settings


def _joints(fields: Fields) -> tuple[tuple[Joint, ...], tuple[bool, ...]]:
    joints, acting = [], []
    for name, joint in fields.sections():
        unit = joint.text("unit")
        low = joint.number("low", unit=unit)
        joints.append(Joint(name, unit, low, joint.number("high", above=low, unit=unit)))
        acting.append(joint.flag("action") if joint.has("action") else True)
        joint.done()
    if not any(acting):
        raise ConfigError(f"{fields.file}: joints: expected at least one joint with an action")
    if acting != sorted(acting, reverse=True):
        raise ConfigError(f"{fields.file}: joints: those without an action come last, as in the action vector")
    return tuple(joints), tuple(acting)


def _cameras(fields: Fields) -> tuple[CameraSpec, ...]:
    cameras = []
    for name, camera in fields.sections():
        cameras.append(CameraSpec(name, *(camera.whole(key, above=7, at_most=4096) for key in ("height", "width"))))
        camera.done()
    return tuple(cameras)


def _slots(fields: Fields) -> dict[str, str | None]:
    return {slot: _camera(fields.text(slot)) for slot in fields.left()}


def _camera(name: str) -> str | None:
    return None if name == NOTHING else name


def _trained(fields: Fields, joints: tuple[str, ...]) -> Trained:
    from hotpolicy.runtime.checkpoint.settings import Trained
    from hotpolicy.runtime.checkpoint.stats import NEEDS, Mode
    from hotpolicy.runtime.transforms import FORMATS

    def whole(key: str) -> int | None:
        return fields.whole(key) if fields.has(key) else None

    normalisation = fields.text("normalisation", choices=tuple(NEEDS)) if fields.has("normalisation") else None
    relative = None
    if fields.has("relative"):
        named = fields.texts("relative")
        if strange := sorted(set(named) - set(joints)):
            raise fields.error("relative", "names of joints", strange[0])
        relative = tuple(joint in named for joint in joints)
    return Trained(
        horizon=whole("horizon"),
        steps=whole("steps"),
        max_tokens=whole("max_tokens"),
        prompt=fields.text("prompt", choices=tuple(FORMATS)) if fields.has("prompt") else None,
        normalisation=cast("Mode | None", normalisation),
        relative=relative,
    )


def _with_flags(settings: Settings, flags: Flags) -> Settings:
    from hotpolicy.runtime.checkpoint.settings import Trained
    from hotpolicy.runtime.checkpoint.stats import NEEDS, Mode
    from hotpolicy.runtime.transforms import FORMATS

    for name, value, known in (("prompt", flags.prompt, FORMATS), ("normalisation", flags.normalisation, NEEDS)):
        if value is not None and value not in known:
            raise ConfigError(f"--{name}: expected one of {', '.join(known)}, got {value!r}")
    slots, cameras = dict(map(_slot, flags.slots)), {camera.name: camera for camera in map(_sized, flags.cameras)}
    return replace(
        settings,
        cameras=tuple({**{camera.name: camera for camera in settings.cameras}, **cameras}.values()),
        slots={**settings.slots, **slots},
        meant=frozenset({*slots, *cameras}),
        rate_hz=flags.rate_hz or settings.rate_hz,
        flags=Trained(
            horizon=flags.horizon,
            steps=flags.steps,
            max_tokens=flags.max_tokens,
            prompt=flags.prompt,
            normalisation=cast("Mode | None", flags.normalisation),
            relative=_relative(flags.relative, settings.names) if flags.relative else None,
        ),
    )


def _slot(text: str) -> tuple[str, str | None]:
    slot, equals, camera = text.partition("=")
    if not (slot and equals and camera):
        raise ConfigError(f"--slot: expected SLOT=CAMERA or SLOT={NOTHING}, got {text!r}")
    return slot, _camera(camera)


def _sized(text: str) -> CameraSpec:
    name, _, size = text.partition("=")
    height, _, width = size.partition("x")
    if not name or not (height.isdecimal() and width.isdecimal()):
        raise ConfigError(f"--camera: expected NAME=HEIGHTxWIDTH in pixels, got {text!r}")
    return CameraSpec(name, int(height), int(width))


def _relative(text: str, joints: tuple[str, ...]) -> tuple[bool, ...]:
    if text in ("all", NOTHING):
        return (text == "all",) * len(joints)
    named = [name.strip() for name in text.split(",")]
    if strange := sorted(set(named) - set(joints)):
        raise ConfigError(f"--relative: expected names of joints, all or none, got {strange[0]!r}")
    return tuple(joint in named for joint in joints)
