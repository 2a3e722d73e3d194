"""What keeps an emergency stop: until a human clears it, or only until the program ends."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Protocol

from hotpolicy.runtime import durable
from hotpolicy.runtime.errors import ConfigError

log = logging.getLogger(__name__)


class Latch(Protocol):
    """Keeps an emergency stop until a human clears it."""

    @property
    def reason(self) -> str | None: ...  # why the arm was stopped; None: it was not

    def set(self, reason: str) -> None: ...


class OpenLatch:
    """A latch that forgets when the program ends."""

    reason: str | None = None

    def set(self, reason: str) -> None:
        self.reason = reason


class FileLatch:
    """A latch in a file: an arm that was stopped stays stopped when its program starts again."""

    def __init__(self, robot: str, folder: Path | None = None):
        self.file = (folder or _state_folder()) / f"{plain(robot)}.json"
        self._reason = self._read()

    @property
    def reason(self) -> str | None:
        return self._reason

    def set(self, reason: str) -> None:
        """Never raises: a disk that is full must not stand between a hand and the stop."""
        self._reason = reason
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            durable.replace_file(self.file, json.dumps({"reason": reason}).encode())
        except OSError as error:
            log.error("the stop is not remembered beyond this program: %s: %s", self.file, error.strerror)

    def clear(self) -> str | None:
        """Forget the stop; returns why there was one. Raises ConfigError when the file cannot be removed."""
        before, self._reason = self._read(), None
        try:
            self.file.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"stop: {self.file} cannot be removed: {error.strerror}") from error
        return before

    def _read(self) -> str | None:
        try:
            return str(json.loads(self.file.read_text())["reason"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return f"unreadable {self.file}"  # a stop nobody can read is still a stop


def plain(name: str) -> str:
    """A robot's name as part of a file's."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[:60]


def _state_folder() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "hotpolicy" / "stopped"
