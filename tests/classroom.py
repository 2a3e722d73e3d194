"""A folder with a virtual arm, a store with the shipped policy and a server, as processes of their own, for tests of
sessions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from hotpolicy.launch.nano import SHIPPED
from hotpolicy.launch.processes import Child
from hotpolicy.launch.profile_file import find_profile
from hotpolicy.runtime.store import Store


@contextmanager
def classroom(folder: Path) -> Iterator[Path]:
    """`folder` with robot.yaml and policies/, arm and server running; control is what `control` says."""
    shipped = find_profile("virtual_so101")
    profile = yaml.safe_load(shipped.read_text())
    profile["arm"]["port"] = str(folder / "arm")
    profile["arm"]["calibration"] = str(shipped.parent / profile["arm"]["calibration"])
    profile["world"] = f"ipc://{folder}/world"
    profile["server"] = {"endpoint": f"ipc://{folder}/s", "control": control(folder)}
    (folder / "robot.yaml").write_text(yaml.safe_dump(profile, sort_keys=False))
    Store(folder / "policies").add(SHIPPED)
    serving = ["serve", "--store", str(folder / "policies"), "--endpoint", f"ipc://{folder}/s"]
    with (
        Child("arm", ["virtual-arm", "--robot", str(folder / "robot.yaml")], folder / "arm.log") as arm,
        Child("server", serving, folder / "server.log") as server,
    ):
        arm.wait_ready()
        server.wait_ready()
        yield folder


def control(folder: Path) -> str:
    return f"ipc://{folder}/s.control"


def plan(place: Path, **fields: Any) -> Path:
    """A session's file there, with `fields`. So short a tuning forgets: nobody asks."""
    values: Mapping[str, Any] = {
        "robot": str(place / "robot.yaml"),
        "folder": str(place / "session"),
        "store": str(place / "policies"),
        "control": control(place),
        "tries": 2,
        "promote": "auto",
        "gate": {"trials": 0, "old_error": 1000},
        **fields,
    }
    file = place / f"{Path(values['folder']).name}.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def state(folder: Path) -> dict[str, Any]:
    """Of the session in `folder`."""
    path = folder / "session.json"
    return json.loads(path.read_text()) if path.exists() else {"phase": "idle", "rounds": []}
