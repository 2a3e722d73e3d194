"""The server over real sockets: what robots, operators and strangers get."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator

import msgpack
import numpy as np
import pytest
import zmq
from serving import HORIZON, SPEC, LevelPolicy, TinyControl, TinySlot, observation

from hotpolicy.runtime import envelope, wire
from hotpolicy.runtime.client import ControlClient, PolicyClient
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.errors import BadRequest, Busy, EngineFault, Expired, HotpolicyError, ServerLost, Superseded
from hotpolicy.runtime.messages import InferRequest, Observation
from hotpolicy.runtime.server import PolicyServer

Start = Callable[..., PolicyServer]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers on free ports and stops them after the test."""
    servers: list[PolicyServer] = []

    def begin(policy: LevelPolicy | None = None, control_delay_s: float = 0.0, **config: object) -> PolicyServer:
        slot = TinySlot(policy or LevelPolicy())
        config.setdefault("drain_s", 0.5)
        server = PolicyServer(
            ServeConfig(endpoint="tcp://127.0.0.1:0", **config),  # type: ignore[arg-type]
            slot,
            TinyControl(slot, control_delay_s),
        )
        servers.append(server)
        server.start()
        server.wait_ready(10)
        return server

    yield begin
    for server in servers:
        server.stop()


def test_a_chunk_says_who_made_it(start: Start) -> None:
    server = start(LevelPolicy(3.0))
    with PolicyClient(server.endpoint) as client:
        before = time.monotonic()
        chunk = client.infer(observation())
    assert chunk.actions.shape == (HORIZON, 6)
    assert (chunk.actions == 3.0).all()
    assert (chunk.version, chunk.digest, chunk.rate_hz) == ("v3", f"{3:064x}", 10.0)
    assert before <= chunk.observed_at <= time.monotonic()
    assert set(chunk.timings_ms) == {"queue", "infer", "total"}


def test_hello_ping_stats(start: Start) -> None:
    server = start()
    with PolicyClient(server.endpoint) as client:
        info = client.hello()
        client.infer(observation())
        stats = client.stats()
        assert (info.spec, info.horizon, info.version, info.state) == (SPEC, HORIZON, "v1", "ready")
        assert client.ping() == "ready"
    assert stats["counts"]["answered"] == 1
    assert stats["versions"] == {"live": "v1", "previous": None, "staged": None}
    assert stats["latency_ms"]["total"]["n"] == 1


def test_the_socket_answers_while_a_model_and_a_command_run(start: Start) -> None:
    policy = LevelPolicy()
    server = start(policy, control_delay_s=2.0)
    policy.delay_s = 2.0
    with (
        PolicyClient(server.endpoint, timeout_s=5.0) as robot,
        PolicyClient(server.endpoint) as other,
        ControlClient(server.control_endpoint) as operator,
    ):
        operator._post({"v": 1, "kind": "stage", "id": 1, "version": "2"}, wire_deadline())
        robot.ask(observation())
        time.sleep(0.1)
        began = time.monotonic()
        assert (other.ping(), other.hello().state, other.stats()["state"]) == ("ready",) * 3
        assert operator.ping() == "ready"
        assert time.monotonic() - began < 0.5
        assert robot.poll(0) is None
        assert robot.poll(5.0) is not None


def wire_deadline() -> object:
    from hotpolicy.runtime.clock import Deadline

    return Deadline.after(1.0)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (Observation({}, np.zeros(6, np.float32), "t"), "images"),
        (Observation(observation().images, np.zeros(5, np.float32), "t"), "state"),
        (Observation(observation().images, np.zeros(6), "t"), "state"),
        (Observation(observation().images, [0.0] * 6, "t"), "state"),  # type: ignore[arg-type]
        (Observation({"front": None}, np.zeros(6, np.float32), "t"), "images"),  # type: ignore[dict-item]
        (Observation(observation().images, np.zeros(6, np.float32), "t" * 3000), "task"),
        (Observation(observation().images, np.zeros(6, np.float32), 7), "task"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_observation_is_refused_before_it_queues(start: Start, wrong: Observation, field: str) -> None:
    server = start()
    with PolicyClient(server.endpoint) as client:
        with pytest.raises(BadRequest, match=f"^{field}"):
            client.infer(wrong)
        client.infer(observation())
    assert server.stats()["counts"]["bad_request"] == 1


def test_a_failing_model_fails_that_request_only(start: Start) -> None:
    server = start()
    with PolicyClient(server.endpoint) as client:
        with pytest.raises(EngineFault, match="RuntimeError: the model broke in two lines"):
            client.infer(Observation(observation().images, np.zeros(6, np.float32), "fail"))
        with pytest.raises(EngineFault, match="not finite"):
            client.infer(Observation(observation().images, np.zeros(6, np.float32), "nan"))
        assert (client.infer(observation()).actions == 1.0).all()
        assert client.ping() == "ready"
    assert server._slot.faults == ["v1", "v1"]  # type: ignore[attr-defined]


def test_a_model_of_the_wrong_shape_is_a_fault_at_warm_up(start: Start) -> None:
    policy = LevelPolicy()
    policy.infer = lambda observations, noise=None: np.zeros((1, 2, 3), np.float32)  # type: ignore[method-assign]
    with pytest.raises(EngineFault, match="expected float32 actions"):
        start(policy)


def raw_socket(endpoint: str) -> zmq.Socket:
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.linger = 0
    socket.rcvtimeo = 2000
    socket.connect(endpoint)
    return socket


def test_garbage_is_answered_where_it_can_be_and_disturbs_nobody(start: Start) -> None:
    server = start()
    stranger = raw_socket(server.endpoint)
    head = {"v": 1, "kind": "infer", "id": 5}
    unreadable = [[b""], [b"\xc1" * 50], [b"GET / HTTP/1.1"], [msgpack.packb([1])], [b"x"] * 40]
    readable = [
        [msgpack.packb(head)],
        [msgpack.packb({**head, "v": 9})],
        [msgpack.packb({**head, "kind": "shutdown"})],
        [msgpack.packb({**head, "kind": ["infer"]})],
        [msgpack.packb({**head, "images": {"front": {"$a": ["O", [1], b"x"]}}})],
        [msgpack.packb(head), b"orphan"],
    ]
    with PolicyClient(server.endpoint) as client:
        for frames in unreadable:
            stranger.send_multipart(frames)
            client.infer(observation())
        for frames in readable:
            stranger.send_multipart(frames)
            reply = wire.decode(stranger.recv_multipart())
            assert (reply["id"], reply["kind"], reply["code"]) == (5, "error", "bad_request")
            client.infer(observation())
    stranger.close()
    counts = server.stats()["counts"]
    assert counts["bad_request"] == len(unreadable) + len(readable)
    assert counts["answered"] == len(unreadable) + len(readable)


def test_a_fault_in_the_check_itself_does_not_end_the_socket_thread(start: Start) -> None:
    policy = LevelPolicy()
    server = start(policy)
    check, policy.check = policy.check, lambda observation: 1 / 0  # type: ignore[method-assign]
    with PolicyClient(server.endpoint) as client:
        with pytest.raises(EngineFault, match="ZeroDivisionError"):
            client.infer(observation())
        policy.check = check  # type: ignore[method-assign]
        client.infer(observation())


def send(socket: zmq.Socket, id: int, deadline_ms: float = 5000.0, session: str = "s") -> None:
    request = InferRequest(id, session, observation(), observed_at=0.0, deadline_ms=deadline_ms)
    socket.send_multipart(wire.encode(envelope.from_request(request)))


def test_superseded_and_expired_are_answered_at_once_while_the_model_runs(start: Start) -> None:
    policy = LevelPolicy()
    server = start(policy, max_batch=1)
    policy.delay_s = 1.0
    socket = raw_socket(server.endpoint)
    began = time.monotonic()
    send(socket, 1)
    time.sleep(0.1)
    send(socket, 2)
    send(socket, 3)
    send(socket, 4, session="other", deadline_ms=100)
    answers = [wire.decode(socket.recv_multipart()) for _ in range(2)]
    assert [(answer["id"], answer["code"]) for answer in answers] == [(2, "superseded"), (4, "expired")]
    assert time.monotonic() - began < 0.8
    answers = [wire.decode(socket.recv_multipart()) for _ in range(2)]
    assert [(answer["id"], answer["kind"]) for answer in answers] == [(1, "chunk"), (3, "chunk")]
    assert len(policy.batches) == 3  # warm-up, 1 and 3: the expired one was not computed
    socket.close()


def test_an_answer_that_comes_too_late_is_not_sent_as_actions(start: Start) -> None:
    policy = LevelPolicy()
    server = start(policy)
    policy.delay_s = 0.2
    socket = raw_socket(server.endpoint)
    send(socket, 1, deadline_ms=100)
    assert wire.decode(socket.recv_multipart())["code"] == "expired"
    socket.close()


def test_cancel_takes_the_waiting_request_out(start: Start) -> None:
    policy = LevelPolicy()
    server = start(policy, max_batch=1)
    policy.delay_s = 0.5
    socket = raw_socket(server.endpoint)
    send(socket, 1)
    time.sleep(0.1)
    send(socket, 2)
    socket.send_multipart(wire.encode({"v": 1, "kind": "cancel", "id": 3, "session": "s"}))
    answers = [wire.decode(socket.recv_multipart()) for _ in range(3)]
    assert [answer["kind"] for answer in answers] == ["cancelled", "error", "chunk"] or [
        answer["id"] for answer in answers
    ] == [2, 3, 1]
    socket.close()


def test_waiting_robots_are_computed_together_and_answers_are_not_crossed(start: Start) -> None:
    policy = LevelPolicy()
    server = start(policy, max_batch=4)
    policy.delay_s = 0.05
    wrong: list[str] = []

    def robot(value: int) -> None:
        with PolicyClient(server.endpoint, timeout_s=10) as client:
            shown = Observation(observation(value).images, np.zeros(6, np.float32), "echo")
            wrong.extend("crossed" for _ in range(5) if not (client.infer(shown).actions == value).all())

    robots = [threading.Thread(target=robot, args=(value,)) for value in range(1, 5)]
    for thread in robots:
        thread.start()
    for thread in robots:
        thread.join()
    assert not wrong
    assert max(policy.batches) > 1
    assert server.stats()["counts"]["answered"] == 20


def test_too_many_sessions_are_told_busy(start: Start) -> None:
    policy = LevelPolicy()
    server = start(policy, max_sessions=1, max_batch=1)
    policy.delay_s = 0.4
    with (
        PolicyClient(server.endpoint, timeout_s=3) as one,
        PolicyClient(server.endpoint, timeout_s=3) as two,
        PolicyClient(server.endpoint, timeout_s=3) as three,
    ):
        for client in (one, two, three):
            client.infer(observation()) if client is one else None
        one.ask(observation())
        time.sleep(0.1)
        for client in (two, three):
            client._ask("ping", wire_deadline())  # connected
        two.ask(observation())
        time.sleep(0.1)
        with pytest.raises(Busy):
            three.infer(observation())
        assert one.poll(3) is not None
        assert two.poll(3) is not None


def test_commands_and_their_errors(start: Start) -> None:
    server = start()
    with PolicyClient(server.endpoint) as client, ControlClient(server.control_endpoint) as operator:
        assert operator.versions() == {"live": "v1"}
        assert operator.swap("7") == {"live": "v7"}
        assert client.infer(observation()).version == "v7"
        assert operator.status()["server"]["versions"]["previous"] == "v1"
        with pytest.raises(BadRequest, match="there is none"):
            operator.rollback()
        with pytest.raises(HotpolicyError, match="ZeroDivisionError"):
            operator.history()
        with pytest.raises(BadRequest, match="kind: expected one of"):
            operator.command("dance")
        with pytest.raises(BadRequest, match="kind: expected infer"):
            client._ask("swap", wire_deadline(), version="9")
        assert all("request_id" in message for message in server._control.handled)  # type: ignore[attr-defined]


def test_a_reply_that_no_client_could_read_is_said_at_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server, deep = start(), {}  # type: ignore[var-annotated]
    for _ in range(9):
        deep = {"deeper": deep}
    monkeypatch.setattr(server._control, "handle", lambda message: deep)
    with ControlClient(server.control_endpoint, longest_s=5) as operator:
        with pytest.raises(HotpolicyError, match=r"reply: result.*expected at most 8 levels"):
            operator.versions()
        assert operator.ping() == "ready"


def test_a_command_may_take_longer_than_the_silence_allowed(start: Start) -> None:
    server = start(control_delay_s=1.0)
    with ControlClient(server.control_endpoint, timeout_s=0.4) as operator:
        assert operator.swap("2") == {"live": "v2"}


def test_the_stall_of_a_swap_is_measured(start: Start) -> None:
    server = start()
    stop = threading.Event()

    def robot() -> None:
        with PolicyClient(server.endpoint) as client:
            while not stop.is_set():
                client.infer(observation())

    thread = threading.Thread(target=robot)
    thread.start()
    time.sleep(0.1)
    server._slot.promote(LevelPolicy(2.0), held_s=0.1)  # type: ignore[attr-defined]
    time.sleep(0.1)
    stop.set()
    thread.join()
    stall = server.stats()["swap_stall_ms"]
    assert stall["swaps"] == 1
    assert 50 < stall["last"] == stall["longest"] < 1000
    assert 0 <= stall["waited"] < stall["last"] - 50, "it was held, not short of a processor"


def test_an_episode_keeps_its_version_and_a_new_one_moves_on(start: Start) -> None:
    server = start()
    with (
        PolicyClient(server.endpoint, boundary="episode") as careful,
        PolicyClient(server.endpoint) as eager,
        ControlClient(server.control_endpoint) as operator,
    ):
        assert careful.infer(observation()).version == eager.infer(observation()).version == "v1"
        operator.swap("2")
        assert (careful.infer(observation()).version, eager.infer(observation()).version) == ("v1", "v2")
        careful.new_episode()
        assert careful.infer(observation()).version == "v2"
        assert server._slot.pinned  # type: ignore[attr-defined]
    deadline = time.monotonic() + 2
    while server._slot.pinned and time.monotonic() < deadline:  # type: ignore[attr-defined]
        time.sleep(0.01)
    assert not server._slot.pinned, "a client that said goodbye holds no version"  # type: ignore[attr-defined]


def test_every_request_under_swaps_is_answered_by_one_named_version(start: Start) -> None:
    server = start()
    stop = threading.Event()
    faults: list[object] = []

    def robot() -> None:
        with PolicyClient(server.endpoint, timeout_s=5) as client:
            while not stop.is_set():
                chunk = client.infer(observation())
                if not (chunk.actions == float(chunk.version[1:])).all():
                    faults.append(chunk)

    robots = [threading.Thread(target=robot) for _ in range(3)]
    for thread in robots:
        thread.start()
    for level in range(2, 60):
        server._slot.promote(LevelPolicy(float(level)))  # type: ignore[attr-defined]
        time.sleep(0.005)
    stop.set()
    for thread in robots:
        thread.join()
    counts = server.stats()["counts"]
    assert not faults
    assert counts["answered"] == counts["asked"]


def test_draining_finishes_what_waits_and_refuses_what_comes(start: Start) -> None:
    policy = LevelPolicy()
    server = start(policy, drain_s=3.0)
    policy.delay_s = 0.5
    with PolicyClient(server.endpoint, timeout_s=5) as one, PolicyClient(server.endpoint, timeout_s=5) as two:
        two.ping()
        one.infer(observation())
        one.ask(observation())
        time.sleep(0.1)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        time.sleep(0.1)
        assert two.ping() == "draining"
        with pytest.raises(Busy):
            two.infer(observation())
        assert one.poll(3) is not None
        stopping.join()
    assert server.state == "stopped"


def test_a_model_that_outlives_the_drain_does_not_hold_the_stop(start: Start) -> None:
    policy = LevelPolicy()
    server = start(policy, drain_s=0.1)
    policy.delay_s = 3.0
    with PolicyClient(server.endpoint, timeout_s=5) as client:
        client.ping()
        client.ask(observation())
        time.sleep(0.1)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 2.5


def test_a_server_stops_and_starts_again_on_its_endpoint(start: Start) -> None:
    server = start()
    endpoint = server.endpoint
    with PolicyClient(endpoint, timeout_s=0.3) as client:
        client.infer(observation())
        server.stop()
        with pytest.raises(ServerLost):
            client.infer(observation())
        slot = TinySlot(LevelPolicy(2.0))
        with PolicyServer(ServeConfig(endpoint=endpoint), slot, TinyControl(slot)):
            assert client.wait_ready(5).version == "v2"
            assert client.infer(observation()).version == "v2"


def test_expired_and_superseded_reach_the_caller(start: Start) -> None:
    policy = LevelPolicy()
    server = start(policy, max_batch=1)
    policy.delay_s = 0.4
    with PolicyClient(server.endpoint, session="a", timeout_s=3) as one, PolicyClient(server.endpoint) as two:
        two.ping()
        one.infer(observation())
        one.ask(observation())
        time.sleep(0.05)
        with pytest.raises((Expired, ServerLost)):
            two.infer(observation(), deadline_ms=100)
        assert Superseded.code == "superseded"
        assert one.poll(3) is not None


def test_metrics_on_loopback(start: Start) -> None:
    from urllib.request import urlopen

    server = start(metrics_port=0)
    with PolicyClient(server.endpoint) as client:
        client.infer(observation())
    assert server._exposition is not None
    with urlopen(f"http://127.0.0.1:{server._exposition.port}/metrics", timeout=5) as page:
        text = page.read().decode()
    assert 'hotpolicy_requests_total{outcome="answered"} 1.0' in text
    assert 'hotpolicy_latency_ms{phase="infer",quantile="p50"}' in text
    assert 'hotpolicy_version_info{role="live",version="v1"} 1.0' in text


def test_ids_may_skip_but_never_repeat_for_a_waiting_session(start: Start) -> None:
    policy = LevelPolicy()
    server = start(policy, max_batch=1)
    policy.delay_s = 0.3
    socket = raw_socket(server.endpoint)
    send(socket, 1)
    time.sleep(0.1)
    for id in (10, 5, 10):
        send(socket, id)
    answers = [wire.decode(socket.recv_multipart()) for _ in range(4)]
    assert [(answer["id"], answer["kind"]) for answer in answers] == list(
        zip((5, 10, 1, 10), itertools.chain(("error",) * 2, ("chunk",) * 2), strict=True)
    )
    socket.close()
