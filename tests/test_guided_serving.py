"""Real-time chunking over real sockets with the shipped policy: the server keeps what a robot executes, and its next
chunk carries on from there; unless there is nothing to carry on from, and then it says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from time import sleep

import numpy as np
import pytest
from random_policy import TINY, golden_of, head_only, seal_delta, seal_random
from serving import LevelPolicy, TinyControl, TinySlot
from serving import observation as level_observation

from hotpolicy.launch.nano import SHIPPED
from hotpolicy.robots.sources import PolicySource
from hotpolicy.runtime import envelope
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.chunks import ChunkBuffer, Chunking
from hotpolicy.runtime.client import PolicyClient
from hotpolicy.runtime.clock import Deadline
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.envelope import MAX_ID
from hotpolicy.runtime.errors import BadRequest
from hotpolicy.runtime.messages import ActionChunk, Observation, Rtc
from hotpolicy.runtime.policy import Policy, load_policy
from hotpolicy.runtime.server import PolicyServer
from hotpolicy.runtime.serving.epochs import Guide
from hotpolicy.runtime.versions.golden import FILE, Golden

LEFT = 6  # actions of a chunk of eight that a robot still has when it asks again
Serve = Callable[..., PolicyServer]


@pytest.fixture(scope="module", params=["torch", "onnx"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def nano(engine: str) -> Policy:
    return load_policy([Bundle.open(SHIPPED)], engine)


@pytest.fixture(scope="module")
def seen(nano: Policy) -> Observation:
    return Golden.load(SHIPPED / FILE).observations(nano.spec)[0]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[PolicyServer] = []

    def begin(policy: object) -> PolicyServer:
        slot = TinySlot(policy)
        servers.append(PolicyServer(ServeConfig(endpoint="tcp://127.0.0.1:0", drain_s=0.1), slot, TinyControl(slot)))
        servers[-1].start()
        servers[-1].wait_ready(60)
        return servers[-1]

    yield begin
    for server in servers:
        server.stop()


def robot(server: PolicyServer) -> PolicyClient:
    return PolicyClient(server.endpoint, timeout_s=10.0)


def rtc(chunk: ActionChunk, **changed: object) -> Rtc:
    asked = Rtc(chunk.request_id, executed=8 - LEFT, delay=4, execution_horizon=LEFT, schedule="ones", max_weight=10.0)
    return replace(asked, **changed)


def moved(seen: Observation) -> Observation:
    """The same picture from an arm that is not where the last chunk began."""
    return replace(seen, state=seen.state + np.array([6, -4, 5, -3, 2, 0], np.float32))


def gap(chunk: ActionChunk, promise: ActionChunk, actions: int = LEFT) -> float:
    """How far the first actions are from what the robot goes on executing: mean, deg."""
    return float(np.abs(chunk.actions[:actions] - promise.actions[8 - LEFT :][:actions])[:, :5].mean())


def test_a_guided_answer_carries_on_and_another_does_not(nano: Policy, seen: Observation, serve: Serve) -> None:
    server = serve(nano)
    with robot(server) as client:
        first = client.infer(seen)
        afresh = client.infer(moved(seen))
        again = client.infer(seen)
        guided = client.infer(moved(seen), rtc=rtc(again))
        counts = client.stats()["counts"]
    assert (first.guided, afresh.guided, again.guided, guided.guided) == (False, False, False, True)
    assert gap(afresh, first) > 0.5
    assert gap(guided, again) < 0.3 * gap(afresh, first)
    assert (counts["guided"], counts["unguided"]) == (1, 0)


def test_what_is_not_held_is_free(nano: Policy, seen: Observation, serve: Serve) -> None:
    with robot(serve(nano)) as client:
        first = client.infer(seen)
        short = client.infer(moved(seen), rtc=rtc(first, delay=1, schedule="zeros"))
    assert short.guided
    assert gap(short, first, 1) < 0.5 * gap(short, first)


def test_a_swap_ends_the_epoch(tmp_path: Path, serve: Serve) -> None:
    full = seal_random(tmp_path / "full", TINY)
    delta = seal_delta(tmp_path / "delta", full, head_only)
    server = serve(load_policy([full]))
    shown = golden_of(TINY, cameras=2).observations(full.manifest.spec)[0]
    asked = {"executed": 1, "delay": 1, "execution_horizon": 3}
    with robot(server) as client:
        first = client.infer(shown)
        second = client.infer(shown, rtc=rtc(first, **asked))
        server._slot.promote(load_policy([full, delta]))
        third = client.infer(shown, rtc=rtc(second, **asked))
        fourth = client.infer(shown, rtc=rtc(third, **asked))
        stale = client.infer(shown, rtc=rtc(second, **asked))
    assert [chunk.version for chunk in (first, third)] == [full.id, delta.id]
    assert [chunk.guided for chunk in (second, third, fourth, stale)] == [True, False, True, False]


def test_a_new_episode_carries_nothing_on(nano: Policy, seen: Observation, serve: Serve) -> None:
    with robot(serve(nano)) as client:
        first = client.infer(seen)
        client.new_episode()
        assert not client.infer(seen, rtc=rtc(first)).guided
        assert not client.infer(seen, rtc=rtc(first)).guided


def test_sessions_never_see_each_other(nano: Policy, seen: Observation, serve: Serve) -> None:
    """Even where their requests have the same ids, and where one takes the other's name."""
    server = serve(nano)
    with robot(server) as one, robot(server) as two, PolicyClient(server.endpoint, one.session, 10.0) as thief:
        mine = one.infer(seen)
        assert not two.infer(seen, rtc=rtc(mine)).guided
        assert not thief.infer(seen, rtc=rtc(mine)).guided
        theirs = two.infer(moved(seen))
        carried = one.infer(moved(seen), rtc=rtc(mine))
        assert carried.guided
        assert gap(carried, mine) < 0.3 * gap(carried, theirs)


def test_a_robot_that_said_goodbye_is_forgotten(nano: Policy, seen: Observation, serve: Serve) -> None:
    with robot(serve(nano)) as client:
        first = client.infer(seen)
        client._post(envelope.message("bye", MAX_ID, session=client.session), Deadline.after(1.0))
        assert not client.infer(seen, rtc=rtc(first)).guided


def test_garbage_is_refused_by_its_name_and_the_robot_is_served_on(
    nano: Policy, seen: Observation, serve: Serve
) -> None:
    with robot(serve(nano)) as client:
        first = client.infer(seen)
        for field, value in (("executed", -1), ("delay", 1.5), ("schedule", "sometimes"), ("max_weight", 1e9)):
            with pytest.raises(BadRequest, match=rf"^rtc\.{field}: expected"):
                client.infer(seen, rtc=rtc(first, **{field: value}))
        far = client.infer(seen, rtc=rtc(first, delay=MAX_ID, execution_horizon=MAX_ID, max_weight=100.0))
        assert far.guided
        assert np.isfinite(far.actions).all()
        assert not client.infer(seen, rtc=rtc(first, executed=MAX_ID)).guided


def test_a_policy_that_cannot_says_so(serve: Serve) -> None:
    with robot(serve(LevelPolicy(3.0))) as client:
        first = client.infer(level_observation())
        second = client.infer(level_observation(), rtc=rtc(first))
        counts = client.stats()["counts"]
    assert (second.guided, float(second.actions[0, 0])) == (False, 3.0)
    assert (counts["guided"], counts["unguided"]) == (0, 1)


def test_rows_with_and_without_a_guide_share_a_batch(nano: Policy, seen: Observation) -> None:
    noise = nano.transforms.noise(np.random.default_rng(1), 3)
    promise = nano.infer([seen], noise[:1])[0]
    guide = Guide(promise, np.ones(8, np.float32), 10.0)
    mixed = nano.infer([moved(seen)] * 3, noise, guides=[None, guide, None])
    alone = nano.infer([moved(seen)] * 3, noise)
    np.testing.assert_allclose(mixed[[0, 2]], alone[[0, 2]], atol=1e-3)
    assert np.abs(mixed[1] - promise).mean() < 0.3 * np.abs(alone[1] - promise).mean()


def test_what_was_promised_is_seen_from_where_the_arm_is_now(nano: Policy, seen: Observation) -> None:
    """Relative joints: the same absolute targets are other differences once the arm has moved."""
    promise = nano.infer([seen], nano.transforms.noise(np.random.default_rng(1), 1))[0]
    guide = Guide(promise, np.ones(8, np.float32), 10.0)
    states = np.stack([seen.state, moved(seen).state])
    guidance = nano._guidance([guide, guide], states)
    assert nano.transforms.relative.mask.all()
    np.testing.assert_allclose(nano.transforms.decode(guidance.previous, states), [promise, promise], atol=1e-3)
    assert np.abs(guidance.previous[0] - guidance.previous[1]).max() > 0.5


def drive(source: PolicySource, seen: Observation, enough: Callable[[], bool]) -> list[np.ndarray | None]:
    """A control loop of 33 Hz whose arm goes wherever it is sent, until there is enough of it."""
    goals: list[np.ndarray | None] = []
    patience = Deadline.after(20.0)
    while not enough():
        assert not patience.passed()
        goals.append(source.act(seen).action)
        if goals[-1] is not None:
            seen = replace(seen, state=goals[-1])
        sleep(0.03)
    return goals


@pytest.mark.parametrize("chunking", ["sync", "async", "rtc"])
def test_a_control_loop_comes_from_chunk_to_chunk(
    nano: Policy, seen: Observation, serve: Serve, chunking: Chunking
) -> None:
    def enough() -> bool:
        done = server.stats()["counts"]
        return bool(done.get("answered", 0) >= 4 and (chunking != "rtc" or done.get("guided", 0)))

    server = serve(nano)
    with robot(server) as client:
        source = PolicySource(client, ChunkBuffer(33.0, replan=4, chunking=chunking))
        source.begin("task")
        goals = drive(source, seen, enough)
    if chunking == "sync":
        first = next(n for n, goal in enumerate(goals) if goal is not None)
        assert sum(goal is None for goal in goals[first:]) >= 2, "it holds while it waits, for a tick at least"
    if chunking != "rtc":
        assert "guided" not in server.stats()["counts"]
