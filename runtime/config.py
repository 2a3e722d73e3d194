"""How a policy server is set up."""

from __future__ import annotations

from dataclasses import dataclass, field

from hotpolicy.runtime import endpoint as endpoints
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.fronts.settings import Gr00tSettings, OpenpiSettings
from hotpolicy.runtime.wire import Caps


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Raises ConfigError naming the field when a value is not allowed."""

    endpoint: str = (
        "tcp://127.0.0.1:5555"  # robots connect here; tcp (port 0: any free one) or ipc; without keys on loopback
    )
    keys: str = ""  # folder made by `hotpolicy keys new --server`: tcp sockets ask for keys, and may bind any address
    control: str = ""  # operators connect here; empty: the next port, or the ipc path with `.control`
    longest_deadline_ms: float = 10_000.0  # a request's own deadline is cut to this
    max_batch: int = 4  # robots computed together
    batch_window_ms: float = 2.0  # the longest a request is held back for a fuller batch; 0: never
    max_sessions: int = 64  # robots waiting at once; one more is answered `busy`
    longest_inference_s: float = 120.0  # a batch that computes for longer is stuck: the engine is restarted
    longest_load_s: float = 600.0  # likewise for the warm-up and for loading anew: a large model may take minutes
    drain_s: float = 5.0  # time for waiting requests after SIGTERM
    metrics_port: int | None = None  # Prometheus on 127.0.0.1; None: off
    gr00t: Gr00tSettings | None = None  # a socket for GR00T's clients; None: off
    openpi: OpenpiSettings | None = None  # a port for openpi's clients; None: off
    caps: Caps = field(default_factory=Caps)  # the most a peer may send in one message

    def __post_init__(self) -> None:
        locked = bool(self.keys)
        object.__setattr__(self, "endpoint", endpoints.check("endpoint", self.endpoint, locked))
        control = self.control or endpoints.beside(self.endpoint)
        object.__setattr__(self, "control", endpoints.check("control", control, locked))
        if self.control == self.endpoint and not self.endpoint.endswith(":*"):
            raise ConfigError(f"control: expected another endpoint than the robots', got {self.control!r} for both")
        self._require("longest_deadline_ms", 1, 3_600_000)
        self._require("max_batch", 1, 1024)
        self._require("batch_window_ms", 0, 1000)
        self._require("max_sessions", 1, 100_000)
        self._require("longest_inference_s", 2, 86_400)
        self._require("longest_load_s", 2, 86_400)
        self._require("drain_s", 0, 3600)
        if self.metrics_port is not None:
            self._require("metrics_port", 0, 65535)

    def _require(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ConfigError(f"{name}: expected a number from {low:g} to {high:g}, got {value!r}")
