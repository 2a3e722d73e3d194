"""Key maps as JSON files: those that come along in keymaps/, by name, and a user's own, by path.

    {"front": "gr00t" or "openpi",
     "images": {THEIR KEY: OUR CAMERA},
     "state": {THEIR KEY: [OUR JOINT, ...]}, "actions": {THEIR KEY: [OUR JOINT, ...]},
     "task": [THEIR KEY, ...], "default_task": TEXT, "note": TEXT}

The last two may be left out. GR00T's keys are written as N1.5 does ("video.front"), also for its nested envelopes;
openpi's maps in maps with a slash ("images/cam_high").
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hotpolicy.runtime.envelope import TASK_LENGTH
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.fronts.keymap import KeyMap

FOLDER = Path(__file__).parent / "keymaps"
FRONTS = ("gr00t", "openpi")
FIELDS = ("note", "front", "images", "state", "actions", "task", "default_task")


def names() -> list[str]:
    """The maps that come along."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name_or_file: str) -> KeyMap:
    """A map that comes along, by name, or a JSON file. Raises ConfigError naming the key that is wrong."""
    by_name = name_or_file in names()
    path = FOLDER / f"{name_or_file}.json" if by_name else Path(name_or_file)
    if not by_name and path.suffix != ".json":
        raise ConfigError(f"keymap: expected a .json file or one of {', '.join(names())}, got {name_or_file!r}")
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"keymap: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"keymap {path.stem}: expected JSON: {error}") from error
    return _keymap(path.stem, data)


def _keymap(name: str, data: Any) -> KeyMap:
    def require(right: bool, key: str, expected: str) -> None:
        if not right:
            raise ConfigError(f"keymap {name}: {key}: expected {expected}")

    require(type(data) is dict, "file", "a map")
    for key in data:
        require(key in FIELDS, key, f"one of {', '.join(FIELDS)}")
    require(data.get("front") in FRONTS, "front", f"one of {', '.join(FRONTS)}")
    for key in ("images", "state", "actions"):
        require(type(data.get(key)) is dict, key, "a map of their keys to ours")
    for key, camera in data["images"].items():
        require(type(camera) is str, f"images.{key}", "the name of a camera")
    for kind in ("state", "actions"):
        require(bool(data[kind]), kind, "at least one key")
        for key, joints in data[kind].items():
            right = type(joints) is list and bool(joints) and all(type(joint) is str for joint in joints)
            require(right, f"{kind}.{key}", "a list of joints")
    one_array = data["front"] != "openpi" or list(data["actions"]) == ["actions"]
    require(one_array, "actions", "one key named actions: openpi's clients look for no other")
    task = data.get("task")
    require(type(task) is list and bool(task) and all(type(k) is str for k in task), "task", "a list of keys")
    default, note = data.get("default_task"), data.get("note", "")
    require(default is None or (type(default) is str and len(default) <= TASK_LENGTH), "default_task", "a text")
    require(type(note) is str, "note", "a text")
    return KeyMap(name, data["front"], data["images"], data["state"], data["actions"], tuple(task), default, note)
