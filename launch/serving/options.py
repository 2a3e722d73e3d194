"""What a policy server is told: the command line's values over those of a YAML file, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hotpolicy.launch.fields import Fields
from hotpolicy.launch.options import STORE
from hotpolicy.launch.serving.fronts import front_settings, read_sections
from hotpolicy.launch.versions import shipped
from hotpolicy.runtime.errors import ConfigError

if TYPE_CHECKING:
    from hotpolicy.runtime.config import ServeConfig
    from hotpolicy.runtime.versions.checks import Checks

# Option -> the one engine that has it.
OWNERS = {"device": "torch", "dtype": "torch", "provider": "onnx", "cache": "onnx"}


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What `serve` was told, with the file's values below the command line's."""

    store: Path
    engine: str
    own: Mapping[str, Any]  # the engine's options
    config: ServeConfig
    checks: Checks  # of candidates, and of the version that serves
    folder: Path | None = None  # what to begin with; None: the store's live version


def serve_options(file: Path | None, given: Mapping[str, Any]) -> ServeOptions:
    """The file's values, with those given on the command line over them. Raises ConfigError naming the field."""
    from hotpolicy.runtime.config import ServeConfig
    from hotpolicy.runtime.engine import ENGINES
    from hotpolicy.runtime.versions.checks import Checks
    from hotpolicy.runtime.versions.watch import OFF, Guard

    read = _read(file) if file else {}
    given = dict(given)
    fronts = {name: given.pop(name) for name in ("gr00t", "gr00t_kill", "openpi", "keymaps") if name in given}
    served = front_settings(read.pop("fronts", {}), **fronts)
    bounds = read.pop("guard", {})  # a mapping, or False
    values = {**read, **given}
    checks = Checks(guard=Guard(**(bounds or {})) if values.pop("guard", bounds is not False) else OFF)
    store, folder = Path(values.pop("store", STORE)), values.pop("folder", None)
    folder = None if folder is None else shipped(Path(folder))
    engine = values.pop("engine", None) or _engine_for(folder)
    own: dict[str, Any] = {name: values.pop(name) for name in ("threads", *OWNERS) if name in values}
    if engine not in ENGINES:
        raise ConfigError(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}")
    if not 1 <= own.get("threads", 1) <= 256:
        raise ConfigError(f"threads: expected a number from 1 to 256, got {own['threads']}")
    if foreign := sorted(name for name, owner in OWNERS.items() if name in own and owner != engine):
        raise ConfigError(f"{foreign[0]}: an option of the {OWNERS[foreign[0]]} engine, the engine is {engine}")
    return ServeOptions(store, engine, own, ServeConfig(**values, **served), checks, folder)


def _engine_for(folder: Path | None) -> str:
    from hotpolicy.runtime.graphs.exported import is_exported

    if (folder is not None and is_exported(folder)) or find_spec("torch") is None:
        return "onnx"
    return "torch"


def _read(file: Path) -> dict[str, Any]:
    fields = Fields.read(file)
    found: dict[str, Any] = {}
    for name in ("folder", "store", "engine", "endpoint", "control", "keys", *OWNERS):
        if fields.has(name):
            found[name] = fields.text(name)
    for name in ("threads", "max_batch", "metrics_port"):
        if fields.has(name):
            found[name] = fields.whole(name)
    for name in ("batch_window_ms", "longest_deadline_ms", "longest_inference_s", "longest_load_s", "drain_s"):
        if fields.has(name):
            found[name] = fields.number(name)
    found["fronts"] = read_sections(fields)
    if fields.has("guard"):
        found["guard"] = _guard(fields)
    fields.done()
    return found


def _guard(fields: Fields) -> dict[str, Any] | Literal[False]:
    """`guard: false`, or a section with some of the bounds."""
    if fields.is_flag("guard"):
        if fields.flag("guard"):
            return {}
        return False
    section = fields.section("guard")
    found: dict[str, Any] = {
        name: section.number(name, above=0) for name in ("margin", "step", "slowdown") if section.has(name)
    }
    if section.has("grace_ms"):
        found["grace_ms"] = section.number("grace_ms")
    if section.has("trips"):
        found["trips"] = section.whole("trips")
    section.done()
    return found
