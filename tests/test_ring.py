"""Shared memory between a client and a server: who may read what, and what is left when one of them is gone."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import SPEC, LevelPolicy, TinyControl, TinySlot

from hotpolicy.runtime import ring as rings
from hotpolicy.runtime.client import PolicyClient
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.errors import BadRequest, ConfigError, ServeError, ServerLost
from hotpolicy.runtime.lending import Lending
from hotpolicy.runtime.messages import CameraSpec, Observation, RobotSpec
from hotpolicy.runtime.ring import LINE, PAGE, PREFIX, SEALS, Ring
from hotpolicy.runtime.server import PolicyServer
from hotpolicy.runtime.serving.loan import Loans
from hotpolicy.runtime.wire import Lent

CAMERAS = ("front", "left")
ROBOT = RobotSpec(SPEC.joints, tuple(CameraSpec(name, 240, 320) for name in CAMERAS), 10.0)
SESSION = (b"peer", "robot")


class SumPolicy(LevelPolicy):
    """Answers what it sees; with `gate`, only after it was opened, and it looks both before and after."""

    spec = ROBOT

    def __init__(self, level: float = 1.0):
        super().__init__(level)
        self.gate: threading.Event | None = None
        self.entered = threading.Event()

    def check(self, observation: Observation) -> None:
        for camera in CAMERAS:
            if observation.images[camera].shape != (240, 320, 3):
                raise BadRequest(f"images.{camera}: expected (240, 320, 3)")

    def infer(self, observations: Any, noise: np.ndarray | None = None) -> np.ndarray:
        actions = np.empty((len(observations), self.horizon, 6), np.float32)
        for row, seen in zip(actions, observations, strict=True):
            front, left = (seen.images[camera] for camera in CAMERAS)
            row[:] = float(front[0, 0, 0]) + 256 * float(left[-1, -1, -1])
            if self.gate:
                self.entered.set()
                assert self.gate.wait(10)
        return actions


def seen(front: int, left: int = 0, height: int = 240) -> Observation:
    images = {n: np.full((height, 320, 3), value, np.uint8) for n, value in zip(CAMERAS, (front, left), strict=True)}
    return Observation(images, np.zeros(6, np.float32), "look")


Serve = Callable[..., PolicyServer]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    servers: list[PolicyServer] = []

    def begin(policy: SumPolicy | None = None, endpoint: str = "") -> PolicyServer:
        slot = TinySlot(policy or SumPolicy())
        endpoint = endpoint or f"ipc://{tmp_path}/s"
        server = PolicyServer(ServeConfig(endpoint=endpoint, drain_s=0.5), slot, TinyControl(slot))
        servers.append(server)
        server.start()
        server.wait_ready(10)
        return server

    yield begin
    for server in servers:
        server.stop()


def lending(server: PolicyServer, **options: Any) -> PolicyClient:
    client = PolicyClient(server.endpoint, timeout_s=5.0, **options)
    client.wait_ready(10)
    return client


def held(server: PolicyServer) -> int:
    return len(server._doors.robots._loans)


def level(client: PolicyClient, observation: Observation) -> float:
    return float(client.infer(observation).actions[0, 0])


def eventually(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    until = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()


# The way it is meant.


def test_pictures_go_through_memory_and_answers_are_right(serve: Serve) -> None:
    server = serve()
    with lending(server) as client:
        for n in range(20):
            assert level(client, seen(n, 255 - n)) == n + 256 * (255 - n)
        assert client.lends
        assert held(server) == 1
    assert eventually(lambda: held(server) == 0), "goodbye lets go of the ring"


def test_a_client_that_was_told_nothing_asks_by_itself(serve: Serve) -> None:
    server = serve()
    with PolicyClient(server.endpoint, timeout_s=5.0) as client:
        assert level(client, seen(7)) == 7
        assert (client.lends, held(server)) == (True, 0), "the first pictures went as frames"
        assert client.ask(seen(8)) == 2, "the question takes no request's number"
        chunk = client.poll(5.0)
        assert chunk is not None
        assert (chunk.request_id, chunk.actions[0, 0], held(server)) == (2, 8, 1)
        assert not client.dropped


def test_two_sessions_never_see_each_others_pictures(serve: Serve) -> None:
    server = serve()
    wrong: list[float] = []

    def robot(mine: int) -> None:
        with lending(server) as client:
            wrong.extend(n for n in range(60) if level(client, seen(n, mine)) != n + 256 * mine)

    robots = [threading.Thread(target=robot, args=(n,)) for n in (1, 2, 3)]
    for thread in robots:
        thread.start()
    for thread in robots:
        thread.join()
    assert not wrong


def test_another_size_another_layout_and_none(serve: Serve) -> None:
    server = serve()
    with lending(server) as client:
        assert level(client, seen(3)) == 3
        with pytest.raises(BadRequest, match=r"images\.front"):
            client.infer(seen(3, height=480))  # larger than the ring's slots
        assert client.lends, "the observation was wrong, not the ring"
        flipped = {name: image[:, ::-1] for name, image in seen(9).images.items()}
        assert level(client, Observation(flipped, np.zeros(6, np.float32), "")) == 9
        with pytest.raises(BadRequest, match="images"):
            client.infer(Observation({"front": None}, np.zeros(6, np.float32), ""))  # type: ignore[dict-item]


def test_off_and_where_it_cannot_be(serve: Serve) -> None:
    server = serve()
    with lending(server, shared_memory=False) as client:
        assert level(client, seen(5)) == 5
        assert (client.lends, held(server)) == (False, 0)
    with pytest.raises(ConfigError, match="shared_memory: expected an ipc endpoint"):
        PolicyClient("tcp://127.0.0.1:9", shared_memory=True)


def test_a_reference_on_tcp_is_refused_by_name(serve: Serve) -> None:
    server = serve(endpoint="tcp://127.0.0.1:0")
    with lending(server) as client:
        assert not client.hello().shared_memory
        client._lending = Lending(server.endpoint)
        client._lending.allowed = True
        assert level(client, seen(4)) == 4, "sent again as frames"
        assert (client.lends, server.stats()["counts"]["bad_request"]) == (False, 1)


def test_a_server_that_cannot_read_the_ring_gets_frames(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    monkeypatch.setattr("hotpolicy.runtime.serving.loan.os.geteuid", lambda: 12345)
    with lending(server) as client:
        for n in range(3):
            assert level(client, seen(n)) == n
            client.ask(seen(n + 10))
            chunk = client.poll(5.0)
            assert chunk is not None
            assert chunk.actions[0, 0] == n + 10
        assert not client.lends
    assert server.stats()["counts"]["bad_request"] == 1, "tried once"


def test_a_restarted_server_reads_the_same_ring(serve: Serve) -> None:
    first = serve()
    with lending(first) as client:
        assert level(client, seen(1)) == 1
        first.stop()
        second = serve(SumPolicy())
        client.wait_ready(5)
        assert level(client, seen(2)) == 2
        assert (client.lends, held(second)) == (True, 1)
        second.stop()
        with pytest.raises(ServerLost):
            client.infer(seen(3), deadline_ms=50)
        third = serve(SumPolicy())
        assert eventually(lambda: client.wait_ready(5).state == "ready")
        assert level(client, seen(4)) == 4
        assert held(third) == 1


def test_another_server_is_lent_nothing_it_cannot_read(serve: Serve) -> None:
    first, other = serve(), serve(endpoint="tcp://127.0.0.1:0")
    with PolicyClient([first.endpoint, other.endpoint], timeout_s=5.0) as client:
        client.wait_ready(10)
        assert level(client, seen(1)) == 1
        assert client.lends
        first.stop()
        assert eventually(lambda: answered(client, 2), 20.0)
        assert (client.endpoint, client.lends) == (other.endpoint, False)
        assert level(client, seen(3)) == 3
        assert other.stats()["counts"].get("bad_request", 0) <= 1, "the one that was on its way to the first"


def answered(client: PolicyClient, value: int) -> bool:
    try:
        return level(client, seen(value)) == value
    except ServeError:
        return False


# Pictures that are captured where the server reads them.

SHAPES = dict.fromkeys(CAMERAS, (240, 320, 3))


def captured(client: PolicyClient, front: int, left: int) -> Observation:
    buffers = client.image_buffers(SHAPES)
    for camera, value in zip(CAMERAS, (front, left), strict=True):
        buffers[camera][:] = value
    return Observation(buffers, np.zeros(6, np.float32), "look")


def ring_of(client: PolicyClient) -> Ring:
    assert client._lending
    assert client._lending._ring
    return client._lending._ring


def test_pictures_captured_in_shared_memory_are_not_copied(serve: Serve) -> None:
    with lending(serve()) as client:
        for n in range(3 * rings.SLOTS):
            before = captured(client, 1, 1)  # never sent: taken back
            made, slots = ring_of(client), ring_of(client)._generation
            observation = captured(client, n, 255 - n)
            assert all(np.shares_memory(image, made._bytes) for image in observation.images.values())
            assert level(client, observation) == n + 256 * (255 - n)
            assert made._generation == slots + 1, "a copy would have taken another slot"
            assert before.images["front"] is not observation.images["front"]
        assert ring_of(client) is made


def test_buffers_stay_the_writers_while_other_pictures_are_sent(serve: Serve) -> None:
    with lending(serve()) as client:
        observation = captured(client, 7, 0)
        assert level(client, seen(1)) == 1
        assert level(client, Observation({**observation.images}, observation.state, "look")) == 7
        again = captured(client, 8, 0)
        part = Observation({**again.images, "left": np.full(SHAPES["left"], 2, np.uint8)}, again.state, "look")
        assert level(client, part) == 8 + 256 * 2, "not all of them: copied, as any others are"
        assert level(client, again) == 8
        assert level(client, again) == 8, "sent once more after the answer: copied too"


def test_buffers_sent_as_frames_are_not_handed_out_again_before_the_answer() -> None:
    lends = Lending("ipc:///somebody")
    lends.allowed = True
    first = lends.reserve(SHAPES)
    lends.lost()
    assert not lends.lend({"id": 1, "images": first}), "the server is to be asked anew"
    lends.allowed = True
    assert not np.shares_memory(lends.reserve(SHAPES)["front"], first["front"])
    lends.answered(1)
    assert np.shares_memory(lends.reserve(SHAPES)["front"], first["front"])
    lends.close()
    first["front"][:] = 1  # and whoever has them may keep them


def test_buffers_where_nothing_is_lent_are_memory_as_any(serve: Serve) -> None:
    with lending(serve(endpoint="tcp://127.0.0.1:0")) as client:
        assert level(client, captured(client, 3, 4)) == 3 + 256 * 4
        for shape in ((240, 320), (0, 320, 3), (240, 320.0, 3)):
            with pytest.raises(ConfigError, match=r"^shapes\.front: expected height, width and colours, got \("):
                client.image_buffers({"front": shape})  # type: ignore[dict-item]


# When a client is gone.

DIES = """
import os, sys, time
sys.path.insert(0, "tests")
from test_ring import *
client = PolicyClient(sys.argv[1], timeout_s=5.0)
client.wait_ready(10)
client.infer(seen(1))
client.ask(seen(2))
print(os.readlink(f"/proc/self/fd/{client._lending._ring._fd}"), flush=True)
time.sleep(60)
"""


def test_a_killed_client_leaves_nothing_and_costs_nobody_anything(serve: Serve) -> None:
    policy = SumPolicy()
    server = serve(policy)
    root = Path(__file__).parent.parent
    dying = subprocess.Popen([sys.executable, "-c", DIES, server.endpoint], cwd=root, stdout=subprocess.PIPE, text=True)
    assert dying.stdout is not None
    policy.entered.clear()
    name = dying.stdout.readline().strip()
    assert name.startswith(f"/memfd:{PREFIX}")
    policy.gate = threading.Event()  # the next request is read while its client dies
    with lending(server) as other:
        other.ask(seen(5, 6))
        assert policy.entered.wait(10)
        dying.send_signal(signal.SIGKILL)
        dying.wait(10)
        dying.stdout.close()
        policy.gate.set()
        chunk = other.poll(5.0)
        assert chunk is not None
        assert chunk.actions[0, 0] == 5 + 256 * 6
        assert eventually(lambda: held(server) == 1), "the dead client's ring is let go"
        assert name not in mapped()
        assert level(other, seen(9)) == 9


def mapped() -> str:
    return Path("/proc/self/maps").read_text()


def test_a_client_killed_during_its_own_inference(serve: Serve) -> None:
    policy = SumPolicy()
    server = serve(policy)
    policy.gate = threading.Event()
    code = DIES.replace("client.infer(seen(1))", "client.ask(seen(1))").replace("client.ask(seen(2))", "")
    root = Path(__file__).parent.parent
    dying = subprocess.Popen([sys.executable, "-c", code, server.endpoint], cwd=root, stdout=subprocess.PIPE, text=True)
    assert dying.stdout is not None
    assert policy.entered.wait(20)
    name = dying.stdout.readline().strip()
    dying.kill()
    dying.wait(10)
    dying.stdout.close()
    assert name in mapped(), "it is being read"
    policy.gate.set()
    assert eventually(lambda: held(server) == 0 and name not in mapped())
    policy.gate = None
    with lending(server) as other:
        assert level(other, seen(1)) == 1


def test_rings_are_let_go_without_a_goodbye(serve: Serve) -> None:
    server = serve()
    client = lending(server)
    level(client, seen(1))
    assert client._lending is not None
    client._lending.close()
    assert eventually(lambda: held(server) == 0)
    client._lending = None
    client.close()


# Slots and generations.


def pictures(value: int = 0) -> dict[str, np.ndarray]:
    return {"front": np.full((100, 100, 3), value, np.uint8), "left": np.full((30, 7, 3), value + 1, np.uint8)}


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = Ring(rings.needed(rings.shapes_of(pictures())))
    yield made
    made.close()


def borrowed(loans: Loans, reference: dict[str, Any], lent: Lent) -> np.ndarray:
    loan = loans.take(SESSION, reference)
    size = int(np.prod(lent.shape))
    return np.frombuffer(loan.pixels[lent.offset : lent.offset + size], np.uint8).reshape(lent.shape)


def test_a_slot_is_not_written_again_before_its_request_is_answered(ring: Ring) -> None:
    loans = Loans(4, 1 << 20)
    taken = [ring.lend(id, pictures(id)) for id in range(1, rings.SLOTS + 1)]
    assert ring.lend(9, pictures(9)) is None
    assert all(taken)
    for id, one in enumerate(taken, 1):
        assert one is not None
        reference, lent = one
        assert (borrowed(loans, reference, lent["front"]) == id).all()
        assert (borrowed(loans, reference, lent["left"]) == id + 1).all()
    ring.answered(2)
    ring.answered(77)
    again = ring.lend(9, pictures(9))
    assert again is not None
    assert again[0]["slot"] == taken[1][0]["slot"]  # type: ignore[index]


def test_generations_wrap(ring: Ring) -> None:
    made, loans = Ring(1000, slots=1, generation=0xFFFFFFFE), Loans(4, 1 << 20)
    seen_generations = []
    for id in range(4):
        one = made.lend(id, {"front": np.full((10, 10, 3), id, np.uint8)})
        assert one is not None
        seen_generations.append(one[0]["generation"])
        assert (borrowed(loans, one[0], one[1]["front"]) == id).all()
        for old in seen_generations[:-1]:
            with pytest.raises(BadRequest, match=r"^ring\.generation: slot 0 was overwritten"):
                loans.take(SESSION, {**one[0], "generation": old})
        made.answered(id)
    assert seen_generations == [0xFFFFFFFF, 0, 1, 2]
    made.close()


def test_a_torn_slot_is_an_error_and_never_an_action(serve: Serve) -> None:
    policy = SumPolicy()
    server = serve(policy)
    with lending(server) as client, lending(server) as other:
        level(client, seen(1))
        policy.gate = threading.Event()
        id = client.ask(seen(10, 20))
        assert policy.entered.wait(10)
        lie = client._lending._ring  # type: ignore[union-attr]
        assert lie is not None
        lie.answered(id)
        lie.lend(id + 1, seen(99).images)  # breaks the rule: the request is being read
        client._asked.lent = None  # type: ignore[union-attr]  # and does not ask again
        policy.gate.set()
        with pytest.raises(BadRequest, match=r"^ring\.generation: slot 0 was overwritten"):
            client.poll(5.0)
        policy.gate = None
        assert level(other, seen(3)) == 3


def test_superseded_requests_give_their_slots_back(serve: Serve) -> None:
    policy = SumPolicy()
    server = serve(policy)
    with lending(server) as client:
        level(client, seen(0))
        made = client._lending._ring  # type: ignore[union-attr]
        for n in range(3 * rings.SLOTS):
            client.ask(seen(n))
            chunk = None
            while n % 3 == 2 and chunk is None:
                chunk = client.poll(0.1)
        assert client._lending._ring is made  # type: ignore[union-attr]
        client.poll(1.0)
        assert made is not None
        assert made._lent.count(None) >= rings.SLOTS - 1


def test_answers_that_never_come_cost_a_new_ring_not_an_overwritten_one() -> None:
    lends = Lending("ipc:///nobody")
    lends.allowed = True
    names = set()
    for id in range(2 * rings.SLOTS):
        message = {"id": id, "images": pictures(id)}
        if not lends.lend(message):
            message = {"id": id, "images": {"front": np.zeros((240, 320, 3), np.uint8)}}
            assert lends.lend(message)
        names.add(message["ring"]["name"])
    assert len(names) >= 2
    lends.close()


# Clients that lie.


def wrong_references(ring: Ring) -> dict[str, tuple[dict[str, Any], str]]:
    one = ring.lend(1, pictures())
    assert one is not None
    good = one[0]
    return {
        "pid": ({**good, "pid": 4_000_000_000}, r"^ring: expected an open memfd"),
        "kernel's pid": ({**good, "pid": 0}, r"^ring: expected an open memfd"),
        "text as pid": ({**good, "pid": "self"}, r"^ring\.pid: expected an integer"),
        "path as pid": ({**good, "pid": "1/../../etc"}, r"^ring\.pid: expected an integer"),
        "fd": ({**good, "fd": 999}, r"^ring: expected an open memfd"),
        "bool as fd": ({**good, "fd": True}, r"^ring\.fd: expected an integer"),
        "stdin": ({**good, "fd": 0}, r"^ring\.name: expected the name"),
        "negative slot": ({**good, "slot": -1}, r"^ring\.slot: expected an integer"),
        "slot": ({**good, "slot": rings.SLOTS}, r"^ring\.slot: expected 0 to 3"),
        "generation": ({**good, "generation": 5}, r"^ring\.generation: slot 0 was overwritten"),
        "none": ({**good, "generation": None}, r"^ring\.generation: expected an integer"),
        "other ring": ({**good, "name": PREFIX + "0" * 32}, r"^ring\.name: expected the name"),
        "path as name": ({**good, "name": "../../etc/passwd"}, r"^ring\.name: expected"),
        "longer name": ({**good, "name": good["name"] + "\n"}, r"^ring\.name: expected"),
        "no name": ({k: v for k, v in good.items() if k != "name"}, r"^ring\.name: expected"),
    }


def test_lying_references_are_refused_by_name(ring: Ring) -> None:
    for what, (reference, expected) in wrong_references(ring).items():
        with pytest.raises(BadRequest, match=expected):
            pytest.fail(f"{what}: {Loans(4, 1 << 20).take(SESSION, reference)}")
    for nonsense in (None, 3, "ring", [1, 2], b"x"):
        with pytest.raises(BadRequest, match=r"^ring: expected"):
            Loans(4, 1 << 20).take(SESSION, nonsense)


@pytest.mark.parametrize("what", ["unsealed", "header", "slots", "size", "largest", "short", "another user"])
def test_memory_that_is_no_ring_of_ours_is_not_mapped(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, slot = PREFIX + "a" * 32, 2 * PAGE
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    header = rings.LAYOUT.pack(rings.MAGIC, 2 if what == "header" else 1, 0 if what == "slots" else 2, slot)
    os.write(fd, header)
    os.ftruncate(fd, {"short": 10, "size": PAGE + 3 * slot}.get(what, PAGE + 2 * slot))
    if what != "unsealed":
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    if what == "another user":
        monkeypatch.setattr("hotpolicy.runtime.serving.loan.os.geteuid", lambda: os.getuid() + 1)
    loans = Loans(4, PAGE if what == "largest" else 1 << 20)
    reference = {"pid": os.getpid(), "fd": fd, "name": name, "slot": 0, "generation": 0}
    with pytest.raises(BadRequest, match=r"^ring: expected"):
        loans.take(SESSION, reference)
    assert name not in mapped()
    os.close(fd)


def test_a_ring_cannot_be_cut_off_under_its_reader(ring: Ring) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(ring._fd, PAGE)


def test_a_reader_cannot_write(ring: Ring) -> None:
    one = ring.lend(1, pictures(3))
    assert one is not None
    pixels = Loans(4, 1 << 20).take(SESSION, one[0]).pixels
    with pytest.raises(TypeError, match="read-only"):
        pixels[0] = 1


def test_rings_are_bounded_and_open_again(ring: Ring) -> None:
    one = ring.lend(1, pictures(3))
    assert one is not None
    loans = Loans(2, 1 << 20)
    for n in range(5):
        loans.take((b"peer", str(n)), one[0])
        assert len(loans) <= 2
    assert loans.take((b"peer", "0"), one[0]).pixels[0] == 3


numbers = st.integers(-2, 6) | st.sampled_from([2**31, 2**32, 2**63]) | st.booleans() | st.none() | st.floats()


@given(
    change=st.fixed_dictionaries(
        {},
        optional={
            "pid": numbers | st.just(os.getpid()),
            "fd": numbers | st.text(max_size=5),
            "name": st.text(max_size=60) | st.binary(max_size=8) | st.none(),
            "slot": numbers,
            "generation": numbers,
        },
    ),
    shape=st.lists(st.integers(-1, 400), max_size=4),
    place=st.lists(st.sampled_from(["ring", 0, LINE, 1 << 20, -1, None]), max_size=3) | st.integers(-1, 3),
    dtype=st.sampled_from(["|u1", "|b1", "<f4", "jpeg", "O"]),
)
@settings(max_examples=300, deadline=None)
def test_any_reference_is_read_or_refused(change: dict, shape: list, place: Any, dtype: str) -> None:
    import msgpack

    from hotpolicy.runtime import wire

    made, loans = Ring(rings.needed(rings.shapes_of(pictures()))), Loans(4, 1 << 20)
    try:
        one = made.lend(1, pictures())
        assert one is not None
        header = {"v": 1, "id": 1, "ring": {**one[0], **change}, "images": {"front": {"$a": [dtype, shape, place]}}}
        frames = [msgpack.packb(header), b"x" * 100]
        try:
            message = wire.decode(frames[: 1 + (place == 1)], lender=lambda found: loans.take(SESSION, found["ring"]))
        except BadRequest:
            return
        image = message["images"]["front"]
        if isinstance(image, np.ndarray):
            assert not image.flags.writeable
            assert int(image.sum()) >= 0, "all of it can be read"
    finally:
        made.close()
