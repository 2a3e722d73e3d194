"""Where a server may listen, and what a second one on the same endpoint is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from serving import LevelPolicy, TinyControl, TinySlot, observation

from hotpolicy.runtime import endpoint
from hotpolicy.runtime.client import PolicyClient
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.metrics import Meter
from hotpolicy.runtime.server import PolicyServer


def server(**config: object) -> PolicyServer:
    slot = TinySlot(LevelPolicy())
    return PolicyServer(ServeConfig(drain_s=0.2, **config), slot, TinyControl(slot))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "address",
    [
        "tcp://0.0.0.0:5555",
        "tcp://*:5555",
        "tcp://192.168.1.4:5555",
        "tcp://[::]:5555",
        "tcp://example.org:5555",
        "tcp://127.0.0.1.example.org:5555",
        "tcp://127.0.0.1:70000",
        "tcp://127.0.0.1:-1",
        "tcp://127.0.0.1:",
        "tcp://127.0.0.1",
        "udp://127.0.0.1:5555",
        "ipc://",
        "ipc:///" + "x" * 120,
        "",
        "5555",
    ],
)
def test_only_loopback_and_ipc_are_endpoints(address: str) -> None:
    for field in ("endpoint", "control"):
        given = {"endpoint": "tcp://127.0.0.1:5555", field: address}
        if field == "control" and not address:
            continue
        with pytest.raises(ConfigError, match=f"^{field}: expected"):
            ServeConfig(**given)


def test_the_control_endpoint_lies_beside() -> None:
    assert ServeConfig().control == "tcp://127.0.0.1:5556"
    assert ServeConfig(endpoint="ipc:///tmp/p").control == "ipc:///tmp/p.control"
    assert ServeConfig(endpoint="tcp://localhost:0").control == "tcp://127.0.0.1:*"
    assert endpoint.beside("tcp://[::1]:7") == "tcp://[::1]:8"
    with pytest.raises(ConfigError, match="control: expected another"):
        ServeConfig(endpoint="ipc:///tmp/p", control="ipc:///tmp/p")


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_batch", 0), ("max_batch", True), ("batch_window_ms", -1), ("drain_s", "5"), ("metrics_port", 70000)],
)
def test_settings_out_of_range(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: expected a number from"):
        ServeConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_a_second_server_is_refused_and_the_first_goes_on(scheme: str, tmp_path: Path) -> None:
    with server(endpoint=f"ipc://{tmp_path}/a" if scheme == "ipc" else "tcp://127.0.0.1:0") as first:
        with pytest.raises(ConfigError, match=r"^endpoint: .* is taken by another server"):
            server(endpoint=first.endpoint, control=f"ipc://{tmp_path}/other").start()
        with pytest.raises(ConfigError, match=r"^control: .* is taken by another server"):
            server(endpoint=f"ipc://{tmp_path}/other", control=first.control_endpoint).start()
        with PolicyClient(first.endpoint) as client:
            assert client.infer(observation()).version == "v1"
        with server(endpoint=f"ipc://{tmp_path}/other"):
            pass  # the endpoint of the refused one was let go


def test_an_ipc_path_left_by_a_killed_server_is_used_again(tmp_path: Path) -> None:
    code = (
        "import sys, os, signal; sys.path.insert(0, 'tests'); from test_server_endpoints import server\n"
        "server(endpoint=sys.argv[1]).start(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    root, address = Path(__file__).parent.parent, f"ipc://{tmp_path}/a"
    killed = subprocess.run([sys.executable, "-c", code, address], cwd=root, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "a").exists()
    with server(endpoint=address) as second, PolicyClient(second.endpoint) as client:
        assert client.infer(observation()).version == "v1"


def test_a_folder_that_is_not_there_and_one_that_is_closed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="endpoint: expected a path in a folder that exists"):
        server(endpoint=f"ipc://{tmp_path}/none/a").start()
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(ConfigError, match="endpoint: cannot lock"):
            server(endpoint=f"ipc://{tmp_path}/a").start()


def test_a_metrics_port_that_is_taken(tmp_path: Path) -> None:
    with server(endpoint=f"ipc://{tmp_path}/a", metrics_port=0) as first:
        assert first._exposition is not None
        taken = first._exposition.port
        with pytest.raises(ConfigError, match="metrics_port: cannot listen"):
            server(endpoint=f"ipc://{tmp_path}/b", metrics_port=taken).start()


def test_quantiles_of_the_latest_samples() -> None:
    meter = Meter()
    meter.observe([("infer", float(value)) for value in range(100)])
    meter.count("answered", 3)
    assert meter.counts() == {"answered": 3}
    assert meter.latency_ms()["infer"] == {"p50": 50.0, "p95": 95.0, "p99": 99.0, "max": 99.0, "n": 100}
