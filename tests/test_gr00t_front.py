"""GR00T's clients on a policy server: a client written from the bytes, over real sockets."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from gr00t_client import Gr00tClient, unpack_b
from serving import HORIZON, LevelPolicy, TinyControl, TinySlot, observation

from hotpolicy.runtime import keys
from hotpolicy.runtime.client import PolicyClient
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.fronts import keymap
from hotpolicy.runtime.fronts.keymap import KeyMap
from hotpolicy.runtime.fronts.settings import Gr00tSettings
from hotpolicy.runtime.messages import CameraSpec, RobotSpec
from hotpolicy.runtime.server import PolicyServer


@contextmanager
def serving(
    tmp_path: Path, slot: TinySlot | None = None, wait: bool = True, **settings: Any
) -> Iterator[tuple[PolicyServer, TinySlot]]:
    slot = slot or TinySlot(LevelPolicy())
    config = ServeConfig(
        endpoint=f"ipc://{tmp_path}/robots",
        drain_s=0.2,
        batch_window_ms=0,
        gr00t=Gr00tSettings(endpoint=f"ipc://{tmp_path}/gr00t", **settings),
    )
    with PolicyServer(config, slot, TinyControl(slot)) as server:
        if wait:
            server.wait_ready()
        yield server, slot


def picture(*lead: int, value: int = 0) -> np.ndarray:
    return np.full((*lead, 48, 64, 3), value, np.uint8)


def flat(value: int = 0, task: str = "lift") -> dict[str, Any]:
    return {
        "video.front": picture(1, value=value),
        "state.joints": np.zeros((1, 6)),
        "annotation.human.action.task_description": [task],
    }


def nested(value: int = 0, task: str = "lift", batch: int = 1) -> dict[str, Any]:
    return {
        "observation": {
            "video": {"front": picture(batch, 1, value=value)},
            "state": {"joints": np.zeros((batch, 1, 6), np.float32)},
            "language": {"task": [[task]] * batch},
        },
        "options": None,
    }


@pytest.mark.parametrize("correlate", [False, True])
@pytest.mark.parametrize("dialect", ["a", "b"])
def test_every_dialect_and_envelope(dialect: str, correlate: bool, tmp_path: Path) -> None:
    with serving(tmp_path) as (server, _), Gr00tClient(server.gr00t_endpoint, dialect, correlate=correlate) as client:
        assert client.call("ping", requires_input=False) == {"status": "ok", "message": "Server is running"}
        action = client.call("get_action", flat())
        assert list(action) == ["action.joints"]
        assert (action["action.joints"].shape, action["action.joints"].dtype) == ((HORIZON, 6), np.float32)
        action, info = client.call("get_action", nested())
        assert action["joints"].shape == (1, HORIZON, 6)
        assert np.all(action["joints"] == 1)
        assert info["version"] == "v1"
        wrapped = {key: value[None] if isinstance(value, np.ndarray) else value for key, value in flat().items()}
        action, _ = client.call("get_action", {"observation": wrapped, "options": None})
        assert action["action.joints"].shape == (1, HORIZON, 6)


def test_a_batch_is_answered_row_by_row(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, slot), Gr00tClient(server.gr00t_endpoint) as client:
        request = nested(task="echo", batch=3)
        request["observation"]["video"]["front"][:, 0] += np.arange(3, dtype=np.uint8)[:, None, None, None] * 7
        action, info = client.call("get_action", request)
        assert action["joints"][:, 0, 0].tolist() == [0, 7, 14]
        assert info["version"] == "v1"
        request["observation"]["language"]["task"] = [["echo"], ["fail"], ["echo"]]
        with pytest.raises(RuntimeError, match="policy v1"):
            client.call("get_action", request)
        assert max(slot.live.batches) > 1
        assert server.stats()["fronts"]["gr00t"] == {"asked": 2, "answered": 1, "engine_fault": 1}


def test_a_swap_between_the_rows_of_a_batch_is_told(tmp_path: Path) -> None:
    first = LevelPolicy(delay_s=0.3)
    with serving(tmp_path, TinySlot(first)) as (server, slot), Gr00tClient(server.gr00t_endpoint) as client:
        client.send("get_action", nested(batch=6))  # at most four are computed together
        while len(first.batches) < 2:  # the warm-up and the first of them
            time.sleep(0.005)
        slot.promote(LevelPolicy(2))
        action, info = client.receive()
        assert info["version"].count("v1") in range(1, 6)
        assert [f"v{level:g}" for level in action["joints"][:, 0, 0]] == info["version"]
        assert [int(digest) for digest in info["digest"]] == [int(version[1:]) for version in info["version"]]


def test_ping_and_config_are_answered_while_the_model_computes(tmp_path: Path) -> None:
    policy = LevelPolicy(delay_s=0.0)
    with (
        serving(tmp_path, TinySlot(policy)) as (server, _),
        Gr00tClient(server.gr00t_endpoint) as busy,
        Gr00tClient(server.gr00t_endpoint) as other,
    ):
        other.call("ping", requires_input=False)
        policy.delay_s = 2.0
        began = time.monotonic()
        busy.send("get_action", nested())
        other.call("ping", requires_input=False)
        other.call("get_modality_config", requires_input=False)
        other.call("reset", {"options": None})
        assert time.monotonic() - began < 1.0
        assert busy.receive()[1]["version"] == "v1"
        assert time.monotonic() - began >= 2.0


@pytest.mark.parametrize(("dialect", "named"), [("a", "video.front"), ("b", "front")])
def test_modality_config_speaks_as_its_peer_last_did(dialect: str, named: str, tmp_path: Path) -> None:
    with serving(tmp_path) as (server, _), Gr00tClient(server.gr00t_endpoint, dialect) as client:
        asked_first = client.call("get_modality_config", requires_input=False)
        assert asked_first["video"] == ("config", {"delta_indices": [0], "modality_keys": ["front"]})
        client.call("get_action", flat() if dialect == "a" else nested())
        config = client.call("get_modality_config", requires_input=False)
        assert config["video"] == ("config", {"delta_indices": [0], "modality_keys": [named]})
        assert config["action"][1]["delta_indices"] == list(range(HORIZON))
        assert config["language"][1]["modality_keys"] == ["annotation.human.action.task_description"]


def test_a_swap_under_it_names_the_new_version(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, slot), Gr00tClient(server.gr00t_endpoint, "a") as client:
        assert client.call("get_action", nested())[1]["version"] == "v1"
        slot.promote(LevelPolicy(2))
        action, info = client.call("get_action", nested())
        assert (info["version"], action["joints"][0, 0, 0]) == ("v2", 2)
        assert client.call("get_action", flat())["action.joints"][0, 0] == 2


def test_reset_begins_an_episode(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, slot), Gr00tClient(server.gr00t_endpoint) as client:
        client.call("reset", {"options": {"boundary": "episode"}})
        assert client.call("get_action", nested())[1]["version"] == "v1"
        slot.promote(LevelPolicy(2))
        assert client.call("get_action", nested())[1]["version"] == "v1"
        assert client.call("reset", {"options": {"boundary": "episode"}}) == {"episode": 2}
        assert client.call("get_action", nested())[1]["version"] == "v2"
        with pytest.raises(RuntimeError, match=r"options.boundary: expected one of chunk, episode"):
            client.call("reset", {"options": {"boundary": np.zeros(2)}})


def test_kill_is_refused_unless_enabled(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, _), Gr00tClient(server.gr00t_endpoint) as client:
        with pytest.raises(RuntimeError, match="kill: refused"):
            client.call("kill", requires_input=False)
        assert server.state == "ready"
        assert client.call("get_action", nested())


def test_kill_where_it_is_enabled(tmp_path: Path) -> None:
    with serving(tmp_path, kill=True) as (server, _), Gr00tClient(server.gr00t_endpoint) as client:
        assert client.call("kill", requires_input=False) is None
        assert server._life.ended.wait(1)


@pytest.mark.parametrize("token", [None, "wrong", "secret2"])
def test_a_wrong_token_gets_nothing(token: str | None, tmp_path: Path) -> None:
    with (
        serving(tmp_path, token="secret") as (server, _),
        Gr00tClient(server.gr00t_endpoint, token=token) as stranger,
        Gr00tClient(server.gr00t_endpoint, token="secret") as known,
    ):
        for endpoint in ("ping", "get_action", "kill", "anything"):
            with pytest.raises(RuntimeError, match=r"^Server error: Unauthorized: Invalid API token$"):
                stranger.call(endpoint, nested())
        assert known.call("get_action", nested())
    assert "secret" not in repr(server.config)


@pytest.mark.parametrize(
    ("endpoint", "data", "says"),
    [
        ("foo", None, "^Server error: Unknown endpoint: foo$"),
        ("get_action", None, "data: expected a map"),
        ("get_action", {"observation": {"state": {"joints": np.zeros((1, 1, 6))}}}, "video.front: expected this key"),
        ("get_action", {**flat(), "state.joints": np.zeros((1, 5))}, "state.joints: expected 6 numbers, got 5"),
        (
            "get_action",
            {**flat(), "video.front": np.zeros((1, 48, 64, 3), np.int32)},
            "video.front: expected a picture",
        ),
        ("get_action", flat(task="fail"), "policy v1: RuntimeError: the model broke in two lines$"),
        ("get_action", flat(task="nan"), "not finite"),
    ],
)
def test_errors_are_one_line_and_the_next_call_works(endpoint: str, data: Any, says: str, tmp_path: Path) -> None:
    with serving(tmp_path) as (server, _), Gr00tClient(server.gr00t_endpoint, "a") as client:
        with pytest.raises(RuntimeError, match=says) as caught:
            client.call(endpoint, data)
        assert "\n" not in str(caught.value)
        assert "Traceback" not in str(caught.value)
        assert client.call("get_action", flat())


def test_a_request_that_takes_too_long_is_refused(tmp_path: Path) -> None:
    policy = LevelPolicy(delay_s=0.3)
    with (
        serving(tmp_path, TinySlot(policy), deadline_ms=100) as (server, _),
        Gr00tClient(server.gr00t_endpoint) as client,
        pytest.raises(RuntimeError, match="deadline"),
    ):
        client.call("get_action", nested())


def test_one_that_correlates_may_ask_again(tmp_path: Path) -> None:
    policy = LevelPolicy()
    with (
        serving(tmp_path, TinySlot(policy)) as (server, _),
        Gr00tClient(server.gr00t_endpoint, correlate=True) as client,
    ):
        policy.delay_s = 0.3
        client.send("get_action", nested(1, task="echo"))
        time.sleep(0.1)
        client.send("get_action", nested(2, task="echo"))  # it has given up on the first
        assert client.receive()[0]["joints"][0, 0, 0] == 2


def test_frames_of_something_else_harm_nobody(tmp_path: Path) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    stranger = context.socket(zmq.DEALER)
    stranger.set(zmq.LINGER, 0)
    with serving(tmp_path) as (server, _), Gr00tClient(server.gr00t_endpoint) as client:
        stranger.connect(server.gr00t_endpoint)
        for frames in ([b"\x80"], [b"no", b"empty", b"frame"], [b"x" * 300, b"", b"\x80"], [b"n"] * 20, [b""]):
            stranger.send_multipart(frames)
        assert unpack_b(stranger.recv_multipart()[-1]) == {"error": "message: expected one frame, got 0"}
        stranger.send_multipart([b"", b"\x80", b"\x80"])
        assert unpack_b(stranger.recv_multipart()[-1]) == {"error": "message: expected one frame, got 2"}
        stranger.send_multipart([b"one", b"two", b"", b"\xc1"])
        answer = stranger.recv_multipart()
        assert answer[:3] == [b"one", b"two", b""]
        assert "expected msgpack" in unpack_b(answer[3])["error"]
        assert client.call("get_action", nested())
        assert server.stats()["fronts"]["gr00t"]["bad_request"] == 7
    stranger.close()
    context.term()


def test_ping_says_when_it_is_not_ready(tmp_path: Path) -> None:
    policy = LevelPolicy(delay_s=0.5)
    with serving(tmp_path, TinySlot(policy), wait=False) as (server, _), Gr00tClient(server.gr00t_endpoint) as client:
        with pytest.raises(RuntimeError, match="the server is warming"):
            client.call("ping", requires_input=False)
        server.wait_ready()
        assert client.call("ping", requires_input=False)["status"] == "ok"


def test_robots_and_gr00t_clients_share_the_server(tmp_path: Path) -> None:
    answers: list[float] = []
    with serving(tmp_path) as (server, _), PolicyClient(server.endpoint) as robot:

        def ask(value: int) -> None:
            with Gr00tClient(server.gr00t_endpoint, "a" if value % 2 else "b") as client:
                for _ in range(10):
                    answers.append(client.call("get_action", flat(value, "echo"))["action.joints"][0, 0] - value)

        threads = [threading.Thread(target=ask, args=(value,)) for value in range(1, 5)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            assert robot.infer(observation()).version == "v1"
        for thread in threads:
            thread.join()
    assert answers == [0] * 40


def test_parts_are_split_as_the_map_says(tmp_path: Path) -> None:
    joints = [f"joint_{n}.pos" for n in range(6)]
    parts = KeyMap(
        "arm",
        "gr00t",
        images={"video.front": "front"},
        state={"state.single_arm": joints[:5], "state.gripper": joints[5:]},
        actions={"action.single_arm": joints[:5], "action.gripper": joints[5:]},
        task=("annotation.human.task_description",),
    )
    with serving(tmp_path, keymap=parts) as (server, _), Gr00tClient(server.gr00t_endpoint, "a") as client:
        asked = {
            "video.front": picture(1),
            "state.single_arm": np.zeros((1, 5)),
            "state.gripper": np.zeros((1, 1)),
            "annotation.human.task_description": ["lift"],
        }
        action = client.call("get_action", asked)
        assert {key: value.shape for key, value in action.items()} == {
            "action.single_arm": (HORIZON, 5),
            "action.gripper": (HORIZON, 1),
        }
        config = client.call("get_modality_config", requires_input=False)
        assert config["state"][1]["modality_keys"] == ["state.single_arm", "state.gripper"]


def test_prometheus_counts_them_apart(tmp_path: Path) -> None:
    slot, front = TinySlot(LevelPolicy()), Gr00tSettings(f"ipc://{tmp_path}/gr00t")
    config = ServeConfig(endpoint=f"ipc://{tmp_path}/robots", drain_s=0.2, metrics_port=0, gr00t=front)
    with PolicyServer(config, slot, TinyControl(slot)) as server, Gr00tClient(server.gr00t_endpoint) as client:
        server.wait_ready()
        client.call("get_action", nested())
        assert server._exposition is not None
        with urllib.request.urlopen(f"http://127.0.0.1:{server._exposition.port}/metrics", timeout=5) as reply:
            assert b'hotpolicy_front_requests_total{front="gr00t",outcome="answered"} 1.0' in reply.read()


def test_a_map_that_does_not_fit_is_said_before_anything_is_bound(tmp_path: Path) -> None:
    wrong = keymap.gr00t_default(RobotSpec(LevelPolicy.spec.joints, (CameraSpec("side", 4, 4),), 10.0))
    with (
        pytest.raises(ConfigError, match=r"images.video.side: expected a camera among front, got 'side'"),
        serving(tmp_path, keymap=wrong),
    ):
        pass
    with serving(tmp_path):
        pass  # every endpoint was let go


def test_a_server_with_keys_lets_them_in_from_this_computer(tmp_path: Path) -> None:
    keys.save(keys.new_pair("server"), tmp_path / "server")
    slot, here = TinySlot(LevelPolicy()), Gr00tSettings("tcp://127.0.0.1:0")
    config = ServeConfig(endpoint="tcp://127.0.0.1:0", keys=str(tmp_path / "server"), drain_s=0.2, gr00t=here)
    with PolicyServer(config, slot, TinyControl(slot)) as server, Gr00tClient(server.gr00t_endpoint) as client:
        server.wait_ready()
        assert client.call("get_action", nested())[1]["version"] == "v1"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"endpoint": "tcp://0.0.0.0:5565"},
            "^gr00t: expected a loopback address or ipc, .*ssh -L",
        ),
        ({"deadline_ms": 0}, "^gr00t: deadline_ms: expected more than 0"),
        ({"deadline_ms": float("nan")}, "^gr00t: deadline_ms"),
    ],
)
def test_wrong_settings_name_their_field(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Gr00tSettings(**settings)
