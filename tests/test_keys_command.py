"""`hotpolicy keys`, and a server and its clients that use what it made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from calling import call
from serving import LevelPolicy, TinyControl, TinySlot

from hotpolicy.launch.serving.options import serve_options
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.server import PolicyServer

Capsys, Monkey = pytest.CaptureFixture[str], pytest.MonkeyPatch


def test_from_new_keys_to_a_command(capsys: Capsys, monkeypatch: Monkey, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    site, mine = tmp_path / "site", tmp_path / "config" / "hotpolicy" / "keys"
    code, out, _ = call(capsys, monkeypatch, "keys", "new", "--server", site)
    assert code == 0
    assert f"hotpolicy serve --keys {site}" in out
    for name in ("arm", "desk"):
        code, out, _ = call(capsys, monkeypatch, "keys", "new", "--client", name)
        assert code == 0
        assert f"secret, stays here: {mine / name}.key_secret" in out
    assert call(capsys, monkeypatch, "keys", "allow", mine / "arm.key", "--server", site)[0] == 0
    assert call(capsys, monkeypatch, "keys", "allow", mine / "desk.key", "--server", site, "--operator")[0] == 0
    rows = json.loads(call(capsys, monkeypatch, "keys", "list", "--server", site, "--json")[1])
    assert [(row["name"], row["role"], len(row["key"])) for row in rows] == [
        ("arm", "robot", 40),
        ("desk", "operator", 40),
    ]
    slot = TinySlot(LevelPolicy())
    config = ServeConfig(endpoint="tcp://127.0.0.1:0", keys=str(site), drain_s=0.2)
    with PolicyServer(config, slot, TinyControl(slot)) as server:
        server.wait_ready()
        control = ("--control", server.control_endpoint, "--server-key", site / "server.key")
        code, out, err = call(capsys, monkeypatch, "status", *control, "--key", mine / "desk.key_secret")
        assert (code, err) == (0, "")
        assert "ready" in out
        code, _, err = call(capsys, monkeypatch, "status", *control, "--key", mine / "arm.key_secret")
        assert code == 2
        assert "this client's key is not allowed there" in err
        code, _, err = call(capsys, monkeypatch, "status", "--control", server.control_endpoint)
        assert code == 2
        assert "asks for keys: connect with --key and --server-key" in err
        monkeypatch.setenv("HOTPOLICY_KEY", str(mine / "desk.key_secret"))
        monkeypatch.setenv("HOTPOLICY_SERVER_KEY", str(site / "server.key"))
        assert call(capsys, monkeypatch, "status", "--control", server.control_endpoint)[0] == 0
        code, out, _ = call(capsys, monkeypatch, "top", server.endpoint, "--once", "--json", "--interval-s", "0.2")
        assert json.loads(out)["state"] == "ready"
        monkeypatch.delenv("HOTPOLICY_KEY")
        monkeypatch.delenv("HOTPOLICY_SERVER_KEY")
        code, _, err = call(capsys, monkeypatch, "top", server.endpoint, "--once")
        assert code == 2
        assert "asks for keys" in err
    assert call(capsys, monkeypatch, "keys", "revoke", "arm", "--server", site)[0] == 0
    assert "arm" not in call(capsys, monkeypatch, "keys", "list", "--server", site)[1]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("keys", "new"), "expected one of --server DIR and --client NAME"),
        (("keys", "new", "--server", "a", "--client", "b"), "expected one of --server DIR and --client NAME"),
        (("keys", "new", "--client", "a b"), "name: expected up to 64 letters"),
        (("keys", "allow", "none.key", "--server", "."), "none.key: expected a key"),
        (("status", "--key", "k"), "expected both --key NAME.key_secret and --server-key server.key"),
        (("serve", "--endpoint", "tcp://0.0.0.0:5555", "--store", "s"), "`hotpolicy keys new --server DIR`"),
    ],
)
def test_complaints(
    capsys: Capsys, monkeypatch: Monkey, tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, monkeypatch, *arguments)
    assert code == 2
    assert complaint in err
    assert err.count("\n") == 1


def test_keys_in_the_servers_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("keys: /etc/hotpolicy/keys\nendpoint: tcp://0.0.0.0:5555\nengine: echo\n")
    assert serve_options(file, {}).config.keys == "/etc/hotpolicy/keys"


def test_keys_in_a_robots_profile(tmp_path: Path) -> None:
    from hotpolicy.launch.profile_file import find_profile, load_profile

    shipped = find_profile("virtual_so101")
    text = shipped.read_text().replace(
        "calibration: virtual_so101.json", f"calibration: {shipped.parent}/virtual_so101.json"
    )
    file = tmp_path / "mine.yaml"
    file.write_text(text.rstrip() + "\n  key: arm.key_secret\n  server_key: /keys/server.key\n")
    profile = load_profile(file)
    assert (profile.key, profile.server_key) == (tmp_path / "arm.key_secret", Path("/keys/server.key"))
    assert load_profile(shipped).key is None
