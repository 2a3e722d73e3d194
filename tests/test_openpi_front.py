"""openpi's clients on a policy server: websockets' own client, over real sockets."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from serving import HORIZON, SPEC, LevelPolicy, TinyControl, TinySlot, observation
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from hotpolicy.runtime.client import PolicyClient
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.fronts import openpi, openpi_codec
from hotpolicy.runtime.fronts.keymap import KeyMap
from hotpolicy.runtime.fronts.settings import OpenpiSettings
from hotpolicy.runtime.server import PolicyServer
from hotpolicy.runtime.wire import CAPS, Caps


@contextmanager
def serving(
    tmp_path: Path, slot: TinySlot | None = None, wait: bool = True, caps: Caps = CAPS, **settings: Any
) -> Iterator[tuple[PolicyServer, TinySlot]]:
    slot = slot or TinySlot(LevelPolicy())
    config = ServeConfig(
        endpoint=f"ipc://{tmp_path}/robots",
        drain_s=0.2,
        batch_window_ms=0,
        caps=caps,
        openpi=OpenpiSettings(port=0, **settings),
    )
    with PolicyServer(config, slot, TinyControl(slot)) as server:
        if wait:
            server.wait_ready()
        yield server, slot


class Client:
    """Says and understands what openpi's client does."""

    def __init__(self, connection: ClientConnection):
        self.connection = connection
        self.metadata = msgpack.unpackb(connection.recv(timeout=5))

    def infer(self, **observation: Any) -> dict[str, Any]:
        self.connection.send(openpi_codec.encode(seen() | observation))
        return self.receive()

    def receive(self) -> dict[str, Any]:
        reply = self.connection.recv(timeout=10)
        if isinstance(reply, str):
            raise RuntimeError(f"Error in inference server:\n{reply}")
        decoded: dict[str, Any] = msgpack.unpackb(reply, object_hook=_array, strict_map_key=False)
        return decoded


@contextmanager
def talking(server: PolicyServer, **options: Any) -> Iterator[Client]:
    uri = f"ws://127.0.0.1:{server.openpi_port}"
    with connect(uri, compression=None, max_size=None, proxy=None, **options) as connection:
        yield Client(connection)


def _array(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return np.ndarray(buffer=value[b"data"], dtype=np.dtype(value[b"dtype"]), shape=value[b"shape"])
    return value


def seen(value: int = 0) -> dict[str, Any]:
    return {
        "observation/front": np.full((48, 64, 3), value, np.uint8),
        "observation/state": np.zeros(6),
        "prompt": "lift",
    }


def get(server: PolicyServer, path: str = "/healthz") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.openpi_port, timeout=5)
    connection.request("GET", path)
    with connection.getresponse() as response:
        body = response.read()
    connection.close()
    return response.status, body


def test_metadata_comes_first_and_each_observation_gets_a_chunk(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, _), talking(server) as client:
        assert client.metadata == {
            "spec": SPEC.to_dict(),
            "version": "v1",
            "digest": f"{1:064x}",
            "cameras": ["front"],
            "horizon": HORIZON,
            "rate_hz": 10.0,
            "keys": {
                "images": {"observation/front": "front"},
                "state": {"observation/state": [joint.name for joint in SPEC.joints]},
                "task": ["prompt"],
            },
        }
        reply = client.infer()
        assert (reply["actions"].shape, reply["actions"].dtype) == ((HORIZON, 6), np.float32)
        assert np.all(reply["actions"] == 1)
        assert reply["version"] == "v1"
        assert list(reply["server_timing"]) == ["infer_ms"]
        again = client.infer()
        assert again["server_timing"].keys() == {"infer_ms", "prev_total_ms"}
        assert again["server_timing"]["prev_total_ms"] >= reply["server_timing"]["infer_ms"] > 0
        for value in again.values():  # openpi's broker slices every array along its first axis
            assert not isinstance(value, np.ndarray) or value.shape[0] == HORIZON


def test_the_layouts_of_their_robots(tmp_path: Path) -> None:
    joints = [joint.name for joint in SPEC.joints]
    images, actions = {"images/cam_high": "front"}, {"actions": joints[:4]}
    aloha = KeyMap("aloha", "openpi", images, {"state": joints}, actions, ("prompt",), "go")
    with serving(tmp_path, keymap=aloha) as (server, _), talking(server) as client:
        image = np.zeros((3, 48, 64), np.uint8)
        image[0] = 7
        sent = {"images": {"cam_high": image, "cam_low": image}, "state": np.zeros(6, np.float32)}
        client.connection.send(openpi_codec.encode(sent))
        assert client.receive()["actions"].shape == (HORIZON, 4)
        client.connection.send(openpi_codec.encode({**sent, "prompt": "echo"}))
        assert client.receive()["actions"][0, 0] == 7


def test_health_and_newcomers_while_the_model_computes(tmp_path: Path) -> None:
    policy = LevelPolicy()
    with serving(tmp_path, TinySlot(policy)) as (server, _), talking(server) as busy:
        assert get(server) == (200, b"OK\n")
        policy.delay_s = 2.0
        began = time.monotonic()
        busy.connection.send(openpi_codec.encode(seen()))
        time.sleep(0.05)
        assert get(server) == (200, b"OK\n")
        with talking(server) as newcomer:
            assert newcomer.metadata["version"] == "v1"
            assert time.monotonic() - began < 1.5
        assert busy.receive()["version"] == "v1"


def test_health_before_the_model_is_warm(tmp_path: Path) -> None:
    with serving(tmp_path, TinySlot(LevelPolicy(delay_s=0.5)), wait=False) as (server, _):
        assert get(server) == (503, b"warming\n")
        with talking(server) as early:
            assert early.infer()["version"] == "v1"  # it had to wait, no more
        assert get(server) == (200, b"OK\n")
        assert get(server, "/elsewhere")[0] == 426


def test_a_swap_under_it_names_the_new_version(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, slot), talking(server) as client:
        assert client.infer()["version"] == "v1"
        slot.promote(LevelPolicy(2))
        reply = client.infer()
        assert (reply["version"], reply["actions"][0, 0]) == ("v2", 2)
        with talking(server) as later:
            assert later.metadata["version"] == "v2"


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ("text", "message: expected a binary frame"),
        (b"\xc1", "message: expected msgpack"),
        (b"\x80", "observation/front: expected this key, got none"),
        (
            openpi_codec.encode({"observation/front": np.zeros((48, 64, 3), np.uint8)}),
            "observation/state: expected this key",
        ),
        (openpi_codec.encode(seen() | {"observation/state": np.zeros(7)}), "observation/state: expected 6 numbers"),
        (openpi_codec.encode(seen() | {"prompt": "fail"}), "policy v1: RuntimeError: the model broke in two lines"),
        (openpi_codec.encode(seen() | {"prompt": "nan"}), "not finite"),
    ],
)
def test_an_error_is_one_line_of_text_and_the_next_connection_works(
    sent: str | bytes, says: str, tmp_path: Path
) -> None:
    with serving(tmp_path) as (server, _):
        with talking(server) as client:
            client.connection.send(sent)
            told = client.connection.recv(timeout=5)
            assert isinstance(told, str)
            assert says in told
            assert "\n" not in told
            assert "Traceback" not in told
            assert str(tmp_path) not in told
            with pytest.raises(ConnectionClosedError) as closed:
                client.connection.recv(timeout=5)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1011
        with talking(server) as client:
            assert client.infer()["version"] == "v1"


def test_a_request_that_takes_too_long_is_refused(tmp_path: Path) -> None:
    policy = LevelPolicy()
    with serving(tmp_path, TinySlot(policy), deadline_ms=100) as (server, _), talking(server) as client:
        policy.delay_s = 0.3
        with pytest.raises(RuntimeError, match="deadline"):
            client.infer()


@pytest.mark.parametrize("header", [None, "Api-Key wrong", "Api-Key secret2", "secret", "Bearer secret", "Api-Key ü"])
def test_a_wrong_key_gets_nothing(header: str | None, tmp_path: Path) -> None:
    with serving(tmp_path, key="secret") as (server, _):
        given = {"Authorization": header} if header else {}
        with pytest.raises((InvalidStatus, UnicodeEncodeError)) as refused, talking(server, additional_headers=given):
            pass
        if isinstance(refused.value, InvalidStatus):
            assert refused.value.response.status_code == 401
        assert get(server) == (200, b"OK\n")
        with talking(server, additional_headers={"Authorization": "Api-Key secret"}) as client:
            assert client.infer()["version"] == "v1"
        assert "secret" not in repr(server.config)


def test_a_web_page_cannot_get_in(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, _):
        with pytest.raises(InvalidStatus) as refused, talking(server, origin="http://127.0.0.1:8000"):
            pass
        assert refused.value.response.status_code == 403


def test_no_more_clients_than_allowed(tmp_path: Path) -> None:
    with serving(tmp_path, connections=2) as (server, _):
        with talking(server), talking(server) as second:
            with pytest.raises(ConnectionClosed) as refused, talking(server):
                pass
            assert refused.value.rcvd is not None
            assert refused.value.rcvd.code == 1013
            assert second.infer()["version"] == "v1"
        for _ in range(50):  # the server may hear of the goodbyes a little later
            try:
                with talking(server) as another:
                    assert another.infer()["version"] == "v1"
                return
            except ConnectionClosed:
                time.sleep(0.02)
        pytest.fail("a place was never given back")


def test_a_message_too_large_ends_its_connection_alone(tmp_path: Path) -> None:
    with (
        serving(tmp_path, caps=Caps(message_bytes=100_000)) as (server, _),
        talking(server) as client,
        talking(server) as other,
    ):
        client.connection.send(bytes(100_001))
        with pytest.raises(ConnectionClosed):
            client.connection.recv(timeout=5)
        assert other.infer()["version"] == "v1"


def test_a_message_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = openpi_codec.encode(seen())
    with serving(tmp_path) as (server, _):
        with talking(server) as client:
            client.connection.send([body[at : at + 1000] for at in range(0, len(body), 1000)])
            assert client.receive()["version"] == "v1"
            monkeypatch.setattr("hotpolicy.runtime.fronts.openpi_talk.FRAGMENTS", 20)
            client.connection.send([b""] * 21)
            with pytest.raises(RuntimeError, match="message: expected at most 20 fragments"):
                client.receive()
        with talking(server) as client:
            assert client.infer()["version"] == "v1"


def test_slow_and_half_open_clients_hold_nobody_up(tmp_path: Path) -> None:
    with serving(tmp_path, connections=2) as (server, _), ExitStack() as stack:
        for n in range(20):
            half = stack.enter_context(socket.create_connection(("127.0.0.1", server.openpi_port)))
            half.sendall(b"GET / HTTP/1.1\r\n"[: n % 16])
        slow = stack.enter_context(talking(server, close_timeout=0.1))
        slow.connection.socket.sendall(b"\x82\xff" + (1 << 20).to_bytes(8, "big") + bytes(4) + b"x" * 100)
        began = time.monotonic()
        with talking(server) as client:
            for _ in range(5):
                assert client.infer()["version"] == "v1"
        assert get(server) == (200, b"OK\n")
        assert time.monotonic() - began < 1.5  # less than a handshake may take


def test_beyond_the_sockets_it_holds_they_are_closed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openpi, "HALF_OPEN", 3)
    with serving(tmp_path, connections=1) as (server, _), ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.openpi_port)))
        time.sleep(0.1)
        fifth = stack.enter_context(socket.create_connection(("127.0.0.1", server.openpi_port), timeout=5))
        assert fifth.recv(1) == b""
        assert server.stats()["fronts"]["openpi"]["busy"] == 1
    with serving(tmp_path, connections=1) as (server, _), talking(server) as client:
        assert client.infer()["version"] == "v1"


def test_clients_of_both_kinds_at_once(tmp_path: Path) -> None:
    wrong: list[float] = []
    with serving(tmp_path) as (server, _), PolicyClient(server.endpoint) as robot:

        def ask(value: int) -> None:
            with talking(server) as client:
                for _ in range(10):
                    level = client.infer(**seen(value) | {"prompt": "echo"})["actions"][0, 0]
                    if level != value:
                        wrong.append(level)

        threads = [threading.Thread(target=ask, args=(value,)) for value in range(1, 5)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            assert robot.infer(observation()).version == "v1"
        for thread in threads:
            thread.join()
        assert not wrong
        counts = server.stats()["fronts"]["openpi"]
        assert (counts["connections"], counts["asked"], counts["answered"]) == (4, 40, 40)


def test_the_server_says_goodbye(tmp_path: Path) -> None:
    policy = LevelPolicy()
    with ExitStack() as clients, ExitStack() as stack:
        server, _ = stack.enter_context(serving(tmp_path, TinySlot(policy)))
        idle, busy = clients.enter_context(talking(server)), clients.enter_context(talking(server))
        policy.delay_s = 3.0  # longer than a draining server waits
        busy.connection.send(openpi_codec.encode(seen()))
        time.sleep(0.1)
        began = time.monotonic()
        stack.close()
        assert time.monotonic() - began < 2.5
        for client in (idle, busy):
            with pytest.raises((ConnectionClosed, RuntimeError)):
                client.receive()


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        slot = TinySlot(LevelPolicy())
        config = ServeConfig(endpoint=f"ipc://{tmp_path}/robots", openpi=OpenpiSettings(port=port))
        with pytest.raises(ConfigError, match=rf"openpi: cannot listen on 127.0.0.1:{port}"):
            PolicyServer(config, slot, TinyControl(slot)).start()
    with serving(tmp_path):
        pass  # every endpoint was let go


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"port": 70000}, "openpi: port"), ({"connections": "2"}, "openpi: connections"), ({"deadline_ms": -1}, "openpi")],
)
def test_wrong_settings_name_their_field(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=f"^{says}"):
        OpenpiSettings(**settings)
