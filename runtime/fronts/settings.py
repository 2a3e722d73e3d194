"""How the fronts for other runtimes' clients are set up."""

from __future__ import annotations

import hmac
import math
from dataclasses import dataclass, field

from hotpolicy.runtime import endpoint as endpoints
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.fronts.keymap import KeyMap

DEADLINE_MS = 5000.0  # their clients give none, and wait for longer than this


@dataclass(frozen=True, slots=True)
class Gr00tSettings:
    """Raises ConfigError naming the field when a value is not allowed."""

    endpoint: str = "tcp://127.0.0.1:5565"  # tcp on loopback (port 0: any free one) or ipc; nothing is encrypted
    token: str = field(default="", repr=False)  # the api_token each call must carry; empty: none
    kill: bool = False  # whether a client may end the server
    deadline_ms: float = DEADLINE_MS  # a request that cannot be answered by then is refused
    keymap: KeyMap | None = None  # None: derived from the robot

    def __post_init__(self) -> None:
        endpoint = endpoints.check("gr00t", self.endpoint, keys=True)
        try:
            endpoints.check("gr00t", endpoint)
        except ConfigError as error:
            raise ConfigError(
                f"gr00t: expected a loopback address or ipc, because GR00T's clients know no keys; got {endpoint!r}. "
                "From another computer come in by `ssh -L 5565:127.0.0.1:5565`"
            ) from error
        object.__setattr__(self, "endpoint", endpoint)
        _check_deadline("gr00t", self.deadline_ms)


@dataclass(frozen=True, slots=True)
class OpenpiSettings:
    """Raises ConfigError naming the field when a value is not allowed."""

    port: int = 8000  # on 127.0.0.1, nothing is encrypted; 0: any free one
    key: str = field(default="", repr=False)  # of the header "Authorization: Api-Key KEY"; empty: none
    connections: int = 16  # clients at once
    deadline_ms: float = DEADLINE_MS
    keymap: KeyMap | None = None

    def __post_init__(self) -> None:
        for name, value, most in (("port", self.port, 65535), ("connections", self.connections, 1024)):
            if type(value) is not int or not 0 <= value <= most:
                raise ConfigError(f"openpi: {name}: expected a number from 0 to {most}, got {value!r}")
        _check_deadline("openpi", self.deadline_ms)


def _check_deadline(front: str, deadline_ms: object) -> None:
    right = type(deadline_ms) in (int, float) and math.isfinite(deadline_ms) and deadline_ms > 0  # type: ignore
    if not right:
        raise ConfigError(f"{front}: deadline_ms: expected more than 0, got {deadline_ms!r}")


def same(given: str, expected: str) -> bool:
    """Whether a secret is right, without telling by the time it takes how much of it is."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode("utf-8", "replace"))
