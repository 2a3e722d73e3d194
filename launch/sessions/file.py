"""The file that a session survives a kill in."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from hotpolicy.launch.sessions.state import Job, Phase, Round, State
from hotpolicy.runtime import durable
from hotpolicy.runtime.errors import ConfigError

FILE = "session.json"


def load(folder: Path) -> State:
    """A session that has done nothing where there is none. Raises ConfigError when the file is damaged."""
    path = folder / FILE
    if not path.exists():
        return State(uuid.uuid4().hex[:12])
    try:
        state = read(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path}: expected a session's state: {type(error).__name__}: {error}") from error
    if state.phase not in get_args(Phase) or (state.phase == "tuning") != (state.job is not None):
        expected = f"one of {', '.join(get_args(Phase))} with its job"
        raise ConfigError(f"{path}: phase: expected {expected}, got {state.phase!r}")
    return state


def save(folder: Path, state: State) -> None:
    """Durable when it returns; readers see the old state or the new."""
    durable.replace_file(folder / FILE, written(state))


def written(state: State) -> bytes:
    return json.dumps(asdict(state), indent=2).encode()


def read(data: Any) -> State:
    """What `written` wrote, parsed. Raises TypeError, KeyError or AttributeError for anything else."""
    rounds = tuple(Round(**{**entry, "reasons": tuple(entry["reasons"])}) for entry in data["rounds"])
    return State(**{**data, "rounds": rounds, "job": Job(**data["job"]) if data["job"] else None})
