"""`hotpolicy serve` for other runtimes' clients: options, sections of the file and secrets of the environment become
the settings of the fronts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hotpolicy.launch.fields import Fields
from hotpolicy.runtime.errors import ConfigError

if TYPE_CHECKING:
    from hotpolicy.runtime.fronts.keymap import KeyMap

GR00T_TOKEN, OPENPI_KEY = "HOTPOLICY_GR00T_TOKEN", "HOTPOLICY_OPENPI_KEY"  # no option: anybody may read a command line


def read_sections(fields: Fields) -> dict[str, dict[str, Any]]:
    """The sections `gr00t` and `openpi`, where the file has them."""
    found: dict[str, dict[str, Any]] = {}
    if fields.has("gr00t"):
        section = fields.section("gr00t")
        found["gr00t"] = {name: section.text(name) for name in ("endpoint", "keymap") if section.has(name)}
        if section.has("kill"):
            found["gr00t"]["kill"] = section.flag("kill")
        _deadline(section, found["gr00t"])
    if fields.has("openpi"):
        section = fields.section("openpi")
        found["openpi"] = {name: section.whole(name) for name in ("port", "connections") if section.has(name)}
        if section.has("keymap"):
            found["openpi"]["keymap"] = section.text("keymap")
        _deadline(section, found["openpi"])
    return found


def _deadline(section: Fields, found: dict[str, Any]) -> None:
    if section.has("deadline_ms"):
        found["deadline_ms"] = section.number("deadline_ms", above=0)
    section.done()


def front_settings(
    sections: Mapping[str, dict[str, Any]],
    gr00t: str | None = None,
    gr00t_kill: bool | None = None,
    openpi: int | None = None,
    keymaps: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """`gr00t` and `openpi` of ServeConfig, the command line's values over the file's; a front that nobody asked for is
    left out. Raises ConfigError naming the field."""
    from hotpolicy.runtime.fronts.settings import Gr00tSettings, OpenpiSettings

    values = {name: dict(section) for name, section in sections.items()}
    if gr00t is not None:
        values.setdefault("gr00t", {})["endpoint"] = gr00t
    if openpi is not None:
        values.setdefault("openpi", {})["port"] = openpi
    if gr00t_kill:
        if "gr00t" not in values:
            raise ConfigError("gr00t_kill: expected --gr00t ENDPOINT with it")
        values["gr00t"]["kill"] = True
    loaded = {name: _load(section.pop("keymap"), name) for name, section in values.items() if "keymap" in section}
    for given in keymaps:
        keymap = _load(given)
        if keymap.front not in values:
            raise ConfigError(f"keymap {keymap.name}: it is for {keymap.front}, expected --{keymap.front} with it")
        loaded[keymap.front] = keymap
    found: dict[str, Any] = {}
    if "gr00t" in values:
        token = environment.get(GR00T_TOKEN, "")
        found["gr00t"] = Gr00tSettings(**values["gr00t"], token=token, keymap=loaded.get("gr00t"))
    if "openpi" in values:
        key = environment.get(OPENPI_KEY, "")
        found["openpi"] = OpenpiSettings(**values["openpi"], key=key, keymap=loaded.get("openpi"))
    return found


def _load(name_or_file: str, front: str = "") -> KeyMap:
    from hotpolicy.runtime.fronts import keymap_file

    keymap = keymap_file.load(name_or_file)
    if front and keymap.front != front:
        raise ConfigError(f"{front}.keymap: expected one for {front}, {keymap.name} is for {keymap.front}")
    return keymap
