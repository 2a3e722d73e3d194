"""What a checkpoint cannot say about the robot it was trained for, and what it can: merged, contradictions refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from hotpolicy.runtime.checkpoint.sizes import Heads
from hotpolicy.runtime.checkpoint.stats import Mode
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.messages import CameraSpec, Joint


@dataclass(frozen=True, slots=True)
class Trained:
    """How a policy was trained. None: not said here."""

    horizon: int | None = None  # actions per chunk
    steps: int | None = None  # Euler steps from noise to actions
    max_tokens: int | None = None  # longest instruction, in tokens
    prompt: str | None = None  # a format of runtime/transforms/prompt.py; "pi05" writes the state into the instruction
    normalisation: Mode | None = None
    relative: tuple[bool, ...] | None = None  # per joint: the action is a difference from the measured state

    def over(self, other: Trained) -> Trained:
        """What is said here, and where nothing is, what `other` says."""
        said = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(other, **said)


# openpi's training defaults; the horizon has none, every robot's differs.
DEFAULTS = {
    False: Trained(steps=10, max_tokens=48, prompt="pi0", normalisation="mean_std"),
    True: Trained(steps=10, max_tokens=200, prompt="pi05", normalisation="quantile"),
}


@dataclass(frozen=True)
class Settings:
    """A robot, and how its policies are trained: a preset, or a user's own file and flags."""

    origin: str  # for messages: "preset so101" or a file's name
    joints: tuple[Joint, ...]  # in the order of the state vector
    acting: tuple[bool, ...]  # per joint: has an action; a joint without one stays where it is measured
    cameras: tuple[CameraSpec, ...]  # as the robot delivers them
    slots: Mapping[str, str | None]  # image slot of the model, in its order -> camera; None: a masked blank
    rate_hz: float  # actions per second
    trained: Mapping[bool, Trained] = field(default_factory=dict)  # for pi0 (False) and pi0.5 (True)
    flags: Trained = field(default_factory=Trained)  # said for this import: differing from the checkpoint is an error
    heads: Heads = field(default_factory=Heads)
    preset: bool = False  # of a kind of robot, not of this one: what the checkpoint says comes first
    meant: frozenset[str] = (
        frozenset()
    )  # slots and cameras that a preset's user named: these come before the checkpoint
    note: str = ""  # what a user of this robot has to know

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(joint.name for joint in self.joints)


@dataclass(frozen=True)
class Stated:
    """What the checkpoint's own files say. None: they do not."""

    source: str  # the file that says so
    trained: Trained = field(default_factory=Trained)
    usual: Trained = field(default_factory=Trained)  # what its trainer does unless told otherwise
    slots: Mapping[str, str | None] | None = None  # slot -> the robot's camera name, or None for a blank
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # slot -> height, width, pixels
    state_entries: int | None = None  # None too for a base model, whose config has the padded width there
    action_entries: int | None = None
    action_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Resolved:
    """Settings and checkpoint as one: nothing is left open."""

    joints: tuple[Joint, ...]
    acting: tuple[bool, ...]
    cameras: tuple[CameraSpec, ...]
    slots: Mapping[str, str | None]
    rate_hz: float
    horizon: int
    steps: int
    max_tokens: int
    prompt: str
    relative: tuple[bool, ...]
    normalisation: Mode

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(joint.name for joint in self.joints)


def resolve(settings: Settings, stated: Stated, pi05: bool) -> Resolved:
    """The checkpoint's word counts first, then flags, its trainer's custom, the robot's settings, openpi's defaults.
    Raises ConfigError where a flag contradicts the checkpoint, or something that has no default is not said."""
    _check_entries(settings, stated)
    said, robot, joints = stated.trained, settings.trained.get(pi05, Trained()), len(settings.joints)
    if said.relative is not None:  # a checkpoint's mask is over the acting joints alone
        said = replace(said, relative=(*said.relative, *(False,) * joints)[:joints])
    wanted = settings.flags if settings.preset else settings.flags.over(robot)
    _refuse_contradictions(wanted, said, stated.source)
    trained = said.over(wanted.over(stated.usual.over(robot.over(DEFAULTS[pi05]))))
    if trained.horizon is None:
        raise ConfigError(
            f"{settings.origin}: horizon: the checkpoint does not say how many actions a chunk has; give --horizon"
        )
    slots, cameras = _eyes(settings, stated)
    assert trained.steps is not None  # this and the next three have defaults
    assert trained.max_tokens is not None
    assert trained.prompt is not None
    assert trained.normalisation is not None
    return Resolved(
        joints=settings.joints, acting=settings.acting, cameras=cameras, slots=slots, rate_hz=settings.rate_hz,
        horizon=trained.horizon, steps=trained.steps, max_tokens=trained.max_tokens, prompt=trained.prompt,
        relative=trained.relative or (False,) * joints, normalisation=trained.normalisation,
    )  # fmt: skip


def _refuse_contradictions(wanted: Trained, said: Trained, source: str) -> None:
    for item in fields(wanted):
        asked, found = getattr(wanted, item.name), getattr(said, item.name)
        if asked is not None and found is not None and asked != found:
            raise ConfigError(f"{item.name}: {_plain(asked)} was asked for, but {source} says {_plain(found)}")


def _check_entries(settings: Settings, stated: Stated) -> None:
    for what, expected, got in (
        ("state", stated.state_entries, len(settings.joints)),
        ("action", stated.action_entries, sum(settings.acting)),
    ):
        if expected is not None and expected != got:
            raise ConfigError(
                f"{settings.origin}: joints: {stated.source} says the {what} has {expected} entries, the settings have "
                f"{got}; give the robot's own joints with --settings"
            )
    if stated.action_names and stated.action_entries:
        acting = [name for name, acts in zip(settings.names, settings.acting, strict=True) if acts]
        for i, (ours, theirs) in enumerate(zip(acting, stated.action_names, strict=False)):
            if ours.removesuffix(".pos") != theirs.removesuffix(".pos"):
                raise ConfigError(
                    f"{settings.origin}: joints: {stated.source} calls action {i} {theirs!r}, the settings {ours!r}"
                )


def _eyes(settings: Settings, stated: Stated) -> tuple[dict[str, str | None], tuple[CameraSpec, ...]]:
    """Slots, and the cameras they need, in the order of the slots."""

    def meant(name: str) -> bool:
        return not settings.preset or name in settings.meant

    slots = dict(settings.slots)
    if stated.slots is not None:
        strange = sorted(slot for slot in settings.slots if meant(slot) and slot not in stated.slots)
        if strange:
            raise ConfigError(
                f"{settings.origin}: slots.{strange[0]}: {stated.source} has no such slot; "
                f"it has {', '.join(stated.slots)}"
            )
        slots = {slot: settings.slots.get(slot, camera) for slot, camera in stated.slots.items()}
    known = {camera.name: camera for camera in settings.cameras}
    cameras = []
    for slot, name in slots.items():
        if name is None:
            continue
        size = stated.sizes.get(slot)
        if size and not (name in known and meant(name)):
            cameras.append(CameraSpec(name, *size))
        elif name in known:
            cameras.append(known[name])
        else:
            raise ConfigError(f"{settings.origin}: cameras: there is no {name!r}, which slot {slot!r} shows")
    if len({camera.name for camera in cameras}) != len(cameras) or not cameras:
        raise ConfigError(f"{settings.origin}: slots: expected at least one camera, and each in one slot, got {slots}")
    return slots, tuple(cameras)


def _plain(value: Any) -> str:
    return " ".join("relative" if v else "absolute" for v in value) if isinstance(value, tuple) else str(value)
