"""Who comes in from another computer: with a key that is allowed, and nobody else; and everybody is told why not."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from serving import LevelPolicy, TinyControl, TinySlot, observation

from hotpolicy.runtime import keys
from hotpolicy.runtime.client import ControlClient, PolicyClient
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.errors import ConfigError, LockedOut, ServerLost
from hotpolicy.runtime.keys import ClientKeys, Role, ServerKeys
from hotpolicy.runtime.server import PolicyServer
from hotpolicy.runtime.serving.doorman import LOOK_S

GRACE_S = 1.5  # a busy machine, three handshakes


class Site:
    """A locked server's folder, and clients' keys beside it."""

    def __init__(self, root: Path):
        self.server, self.clients = root / "server", root / "clients"
        keys.save(keys.new_pair("server"), self.server)

    def client(self, name: str, role: Role | None = None, server: Path | None = None) -> ClientKeys:
        """With a `role` it is allowed."""
        public, secret = keys.save(keys.new_pair(name), self.clients)
        if role:
            keys.allow(self.server, public, role)
        return ClientKeys.load(secret, (server or self.server) / "server.key")

    def serve(self, **config: object) -> PolicyServer:
        slot = TinySlot(LevelPolicy())
        given = {"endpoint": "tcp://127.0.0.1:0", "drain_s": 0.2, "keys": str(self.server), **config}
        return PolicyServer(ServeConfig(**given), slot, TinyControl(slot))  # type: ignore[arg-type]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def serving(site: Site) -> Iterator[PolicyServer]:
    with site.serve() as server:
        server.wait_ready()
        yield server


def test_a_robot_asks_and_an_operator_commands(site: Site, serving: PolicyServer) -> None:
    robot, operator = site.client("arm", "robot"), site.client("desk", "operator")
    for allowed in (robot, operator):
        with PolicyClient(serving.endpoint, timeout_s=5, keys=allowed) as client:
            assert client.wait_ready(5).version == "v1"
            assert client.infer(observation()).actions.shape == (8, 6)
    with ControlClient(serving.control_endpoint, keys=operator) as control:
        assert control.swap("2") == {"live": "v2"}


def locked_out(client: PolicyClient | ControlClient, match: str, within_s: float = 5.0) -> None:
    client.timeout_s = within_s
    began = time.monotonic()
    with pytest.raises(LockedOut, match=match):
        client.ping()
    assert time.monotonic() - began < GRACE_S < within_s, "said at once, not at the deadline"


def test_strangers_are_told_why(site: Site, serving: PolicyServer, tmp_path: Path) -> None:
    keys.save(keys.new_pair("server"), tmp_path / "another")
    robot = site.client("arm", "robot")
    cases = [
        (serving.endpoint, site.client("stranger"), "not allowed there; on the server: hotpolicy keys allow"),
        (serving.endpoint, site.client("lost", "robot", server=tmp_path / "another"), "another key"),
        (serving.endpoint, None, "asks for keys: connect with --key and --server-key"),
        (serving.control_endpoint, None, "asks for keys"),
    ]
    for endpoint, known, reason in cases:
        with PolicyClient(endpoint, keys=known) as client:
            locked_out(client, reason)
            began = time.monotonic()
            with pytest.raises(LockedOut, match=reason):
                client.ask(observation())  # a robot's loop goes on
            assert time.monotonic() - began < 0.25
    with ControlClient(serving.control_endpoint, keys=robot) as control:
        locked_out(control, "not allowed there")
    with PolicyClient(serving.endpoint, timeout_s=5, keys=robot) as client:
        assert client.ping() == "ready"


def test_keys_at_a_server_without_any(site: Site) -> None:
    with site.serve(keys="") as server, PolicyClient(server.endpoint, keys=site.client("arm")) as client:
        server.wait_ready()
        locked_out(client, "asks for no")


def test_a_server_that_is_not_there_is_no_locked_door(site: Site) -> None:
    with PolicyClient("tcp://127.0.0.1:9", timeout_s=0.2, keys=site.client("arm")) as client:
        with pytest.raises(ServerLost, match="no server there") as caught:
            client.ping()
        assert not isinstance(caught.value, LockedOut)


def test_allowed_later_the_same_client_comes_in(site: Site, serving: PolicyServer) -> None:
    with PolicyClient(serving.endpoint, keys=site.client("arm")) as client:
        locked_out(client, "not allowed")
        keys.allow(site.server, site.clients / "arm.key", "robot")
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                assert client.ping() == "ready"
                break
            except LockedOut:
                time.sleep(0.1)
        assert client.infer(observation()).version == "v1"


def test_a_revoked_client_is_heard_no_more_and_cannot_come_again(site: Site, serving: PolicyServer) -> None:
    robot, other = site.client("arm", "robot"), site.client("other", "robot")
    with (
        PolicyClient(serving.endpoint, timeout_s=5, keys=robot) as client,
        PolicyClient(serving.endpoint, timeout_s=5, keys=other) as stays,
    ):
        assert client.infer(observation()).version == "v1"
        assert stays.infer(observation()).version == "v1"
        keys.revoke(site.server, "arm")
        time.sleep(LOOK_S + 0.1)
        with pytest.raises(ServerLost, match="no answer before"):
            client.infer(observation(), deadline_ms=300)
        assert stays.infer(observation()).version == "v1"
    with PolicyClient(serving.endpoint, keys=robot) as again:
        locked_out(again, "not allowed")


def test_whoever_sends_what_no_client_sends_is_kept_out(site: Site, serving: PolicyServer) -> None:
    robot, other = site.client("arm", "robot"), site.client("other", "robot")
    with PolicyClient(serving.endpoint, timeout_s=5, keys=other) as stays:
        with PolicyClient(serving.endpoint, timeout_s=5, keys=robot) as client:
            assert client.ping() == "ready"
            client._socket.send_multipart([b"x"] * 5000)
            time.sleep(0.5)
        assert stays.infer(observation()).version == "v1"
        with PolicyClient(serving.endpoint, keys=robot) as client:
            locked_out(client, "not allowed")
        keys.allow(site.server, site.clients / "arm.key", "robot")  # somebody has looked into it
        with PolicyClient(serving.endpoint, timeout_s=5, keys=robot) as client:
            assert client.wait_ready(5).version == "v1"


def test_a_list_damaged_while_serving_lets_in_those_before(site: Site, serving: PolicyServer) -> None:
    robot = site.client("arm", "robot")
    with PolicyClient(serving.endpoint, timeout_s=5, keys=robot) as client:
        assert client.ping() == "ready"
    (site.server / keys.CLIENTS).write_text("nonsense\n")
    with PolicyClient(serving.endpoint, timeout_s=5, keys=robot) as client:
        assert client.ping() == "ready"


def test_ipc_needs_no_keys_where_tcp_does(site: Site, tmp_path: Path) -> None:
    control = f"ipc://{tmp_path}/control"
    with site.serve(control=control) as server, ControlClient(control, keys=site.client("desk")) as operator:
        server.wait_ready()
        assert operator.ping() == "ready"


@pytest.mark.parametrize("field", ["endpoint", "control"])
@pytest.mark.parametrize("address", ["tcp://0.0.0.0:5555", "tcp://*:5555", "tcp://[::]:5555", "tcp://eth0:5555"])
def test_off_loopback_without_keys_is_refused_with_the_commands(field: str, address: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: expected a loopback address or ipc") as caught:
        ServeConfig(**{"endpoint": "tcp://127.0.0.1:1", field: address})
    for command in ("`hotpolicy keys new --server DIR`", "`hotpolicy keys new --client NAME`", "--keys DIR"):
        assert command in str(caught.value)
    assert getattr(ServeConfig(**{"endpoint": "tcp://127.0.0.1:1", field: address, "keys": "k"}), field) == address


def test_every_interface_and_both_families(site: Site) -> None:
    robot = site.client("arm", "robot")
    with site.serve(endpoint="tcp://0.0.0.0:0") as server:
        port = server.endpoint.rpartition(":")[2]
        with PolicyClient(f"tcp://localhost:{port}", timeout_s=5, keys=robot) as client:
            assert client.wait_ready(5).version == "v1"
    with pytest.raises(ConfigError, match=r"^endpoint: cannot bind .*expected an address or interface"):
        site.serve(endpoint="tcp://robot.example:5999").start()


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
def test_ipv6(site: Site) -> None:
    robot = site.client("arm", "robot")
    with (
        site.serve(endpoint="tcp://[::1]:0") as server,
        PolicyClient(server.endpoint, timeout_s=5, keys=robot) as client,
    ):
        assert client.wait_ready(5).version == "v1"


def test_a_folder_without_keys_starts_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.key_secret: expected a secret key, made by `hotpolicy keys new`"):
        Site(tmp_path).serve(keys=str(tmp_path / "none")).start()


# Files.


def test_keys_are_read_as_zmq_auth_reads_them(site: Site) -> None:
    from zmq.auth import load_certificate

    public, secret = load_certificate(site.server / "server.key_secret")
    assert (public, secret) == (ServerKeys.load(site.server).own.public, ServerKeys.load(site.server).own.secret)
    assert load_certificate(site.server / "server.key") == (public, None)
    assert secret is not None
    assert secret.decode() not in repr(ServerKeys.load(site.server))


def test_secrets_are_closed_to_others(site: Site) -> None:
    secret = site.server / "server.key_secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    secret.chmod(0o640)
    with pytest.raises(ConfigError, match=r"key_secret: expected a file only its owner may read .* mode is 640"):
        ServerKeys.load(site.server)


def test_a_key_is_never_replaced(site: Site) -> None:
    before = (site.server / "server.key").read_bytes()
    with pytest.raises(ConfigError, match=r"server\.key: expected no key of that name yet"):
        keys.save(keys.new_pair("server"), site.server)
    assert (site.server / "server.key").read_bytes() == before
    assert sorted(os.listdir(site.server)) == ["server.key", "server.key_secret"]
    with pytest.raises(ConfigError, match=r"^name: expected"):
        keys.new_pair("../evil")


DAMAGED = [
    ("", r'expected a line public-key = "'),
    ("\x00\xff", "expected"),
    ('public-key = "short"', "expected 40 characters of Z85, got 5"),
    (f'public-key = "{"#" * 40}"', "the key is damaged"),
    (f'public-key = "{" " * 40}"', "expected 40 characters"),
]


@pytest.mark.parametrize(("text", "complaint"), DAMAGED)
def test_damaged_keys(site: Site, text: str, complaint: str) -> None:
    secret = site.server / "server.key_secret"
    secret.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=rf"key_secret.*{complaint}"):
        ServerKeys.load(site.server)


def test_keys_of_two_pairs_and_the_wrong_half(site: Site) -> None:
    other, mine = zmq.curve_keypair()[0].decode(), site.server / "server.key_secret"
    text = mine.read_text()
    public = ServerKeys.load(site.server).own.public.decode()
    mine.write_text(text.replace(public, other))
    with pytest.raises(ConfigError, match="expected a public-key that belongs to the secret-key"):
        ServerKeys.load(site.server)
    (site.server / "server.key").chmod(0o600)
    with pytest.raises(ConfigError, match=r"this is a public key, NAME\.key_secret is wanted"):
        keys.load_secret(site.server / "server.key")


@pytest.mark.parametrize("line", ["robot arm", "king arm {key}", "robot a/b {key}", "robot arm {key} more", "x"])
def test_damaged_lists(site: Site, line: str) -> None:
    key = keys.new_pair("arm").public.decode()
    (site.server / keys.CLIENTS).write_text(line.format(key=key) + "\n")
    with pytest.raises(ConfigError, match=r"authorized_clients: expected lines of robot\|operator, name and key"):
        site.serve().start()


def test_the_list_of_clients(site: Site) -> None:
    site.client("arm", "robot")
    keys.allow(site.server, site.clients / "arm.key", "operator")  # its role changes
    assert [(c.name, c.role) for c in keys.read_clients(site.server)] == [("arm", "operator")]
    keys.save(keys.new_pair("arm"), site.clients / "another")
    with pytest.raises(ConfigError, match="another key is allowed under it"):
        keys.allow(site.server, site.clients / "another" / "arm.key", "robot")
    with pytest.raises(ConfigError, match=r"expected one that is allowed \(arm\), got 'leg'"):
        keys.revoke(site.server, "leg")
    keys.revoke(site.server, "arm")
    assert keys.read_clients(site.server) == ()
    with pytest.raises(ConfigError, match="expected a server's keys; make them: hotpolicy keys new --server"):
        keys.allow(site.clients, site.clients / "arm.key", "robot")
