"""Robots, cameras and teleoperators of other packages: found through entry points, made by name.

A package registers a factory in its own pyproject.toml (docs/plugins.md has a whole example):

    [project.entry-points."hotpolicy.robots"]
    my_arm = "my_package.arm:make"

Nothing of a plug-in is imported before a profile or a command asks for it by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal, Protocol, cast, runtime_checkable

from hotpolicy.robots.robot import Arm, Camera, Operator
from hotpolicy.runtime.errors import ConfigError, HotpolicyError
from hotpolicy.runtime.messages import CameraSpec, RobotSpec

Kind = Literal["robots", "cameras", "teleoperators"]
Options = Mapping[str, Any]  # what the profile says under `options`, as YAML gave it

# What comes with hotpolicy, by the same road.
BUILT_IN: Mapping[Kind, Mapping[str, str]] = {
    "robots": {"lerobot": "hotpolicy.robots.lerobot_adapter:make_robot"},
    "cameras": {},
    "teleoperators": {"lerobot": "hotpolicy.robots.lerobot_adapter:make_teleoperator"},
}


@dataclass(frozen=True, slots=True)
class PluginUse:
    """A plug-in as a profile asks for it."""

    name: str
    options: Options


@runtime_checkable
class Seeing(Protocol):
    """An arm that brings cameras of its own."""

    def camera(self, spec: CameraSpec) -> Camera: ...  # raises ConfigError for one it does not have


def available(kind: Kind) -> dict[str, str]:
    """Name -> where its factory is."""
    found = {point.name: point.value for point in entry_points(group=f"hotpolicy.{kind}")}
    return {**BUILT_IN[kind], **found}


def make_arm(use: PluginUse, spec: RobotSpec) -> Arm:
    """Raises ConfigError when there is no such plug-in, it cannot be imported, or does not make an arm of `spec`."""
    arm = cast(Arm, _make("robots", use, spec, use.options))
    _require("robots", use.name, arm, ("read", "send", "hold", "torque", "close", "spec"))
    got, wanted = [(j.name, j.unit) for j in arm.spec.joints], [(j.name, j.unit) for j in spec.joints]
    if got != wanted:
        arm.close()
        raise ConfigError(f"robots plug-in {use.name!r}: expected an arm with the joints {wanted}, got {got}")
    return arm


def make_camera(use: PluginUse, spec: CameraSpec) -> Camera:
    """Raises ConfigError as `make_arm` does."""
    camera = cast(Camera, _make("cameras", use, spec, use.options))
    _require("cameras", use.name, camera, ("name", "read", "close"))
    return camera


def make_operator(use: PluginUse, spec: RobotSpec) -> Operator:
    """Raises ConfigError as `make_arm` does."""
    operator = cast(Operator, _make("teleoperators", use, spec, use.options))
    _require("teleoperators", use.name, operator, ("act", "close"))
    return operator


def _make(kind: Kind, use: PluginUse, *arguments: object) -> object:
    factory = _find(kind, use.name)
    try:
        return factory(*arguments)
    except HotpolicyError:
        raise
    except (TypeError, KeyError, ValueError) as error:  # policy: its options are the user's to mend
        raise ConfigError(f"{kind} plug-in {use.name!r}: options {dict(use.options)}: {error!r}") from error


def _find(kind: Kind, name: str) -> Callable[..., object]:
    known = available(kind)
    if name not in known:
        raise ConfigError(f"plugin: expected one of the {kind} {', '.join(sorted(known)) or '(none)'}, got {name!r}")
    module, _, attribute = known[name].partition(":")
    try:
        return cast("Callable[..., object]", getattr(import_module(module), attribute))
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{kind} plug-in {name!r} ({known[name]}): cannot be imported: {error}") from error


def _require(kind: Kind, name: str, made: object, members: tuple[str, ...]) -> None:
    if missing := [member for member in members if not hasattr(made, member)]:
        raise ConfigError(f"{kind} plug-in {name!r}: made a {type(made).__name__} without {', '.join(missing)}")
