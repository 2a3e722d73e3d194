"""The scheduler's rules, one by one and under any sequence of events."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from serving import observation

from hotpolicy.runtime.messages import InferRequest
from hotpolicy.runtime.scheduler import PATIENCE, Outcome, Scheduler, Ticket

SHOWN = observation()


def answer(outcome: Outcome) -> None:
    pytest.fail("a pure decision answers nobody")


def ticket(session: str = "a", id: int = 1, arrived: float = 0.0, deadline_s: float = 1.0) -> Ticket:
    request = InferRequest(id, session, SHOWN, observed_at=0.0, deadline_ms=1000 * deadline_s)
    return Ticket(request, session.encode(), arrived, arrived + deadline_s, answer)


def batch(scheduler: Scheduler, now: float = 0.0, version: str = "v") -> list[Ticket]:
    return scheduler.next_batch(now, dict.fromkeys(scheduler.waiting(), version))


def test_the_newest_of_a_session_wins_in_any_order() -> None:
    scheduler = Scheduler()
    first, second, third = ticket(id=1), ticket(id=2), ticket(id=3)
    assert scheduler.admit(second) is None
    assert scheduler.admit(first) is first
    assert scheduler.admit(third) is second
    assert scheduler.admit(third) is third, "a repeated id is not newer"
    assert batch(scheduler) == [third]
    assert len(scheduler) == 0


def test_sessions_of_the_same_name_from_two_peers_are_two() -> None:
    scheduler = Scheduler()
    request = InferRequest(1, "same", SHOWN, 0.0, 1000)
    for peer in (b"one", b"two"):
        assert scheduler.admit(Ticket(request, peer, 0.0, 1.0, answer)) is None
    assert len(batch(scheduler)) == 2


def test_earliest_deadline_first() -> None:
    scheduler = Scheduler(max_batch=1)
    for name, deadline in (("slow", 3.0), ("fast", 1.0), ("middle", 2.0)):
        scheduler.admit(ticket(name, deadline_s=deadline))
    assert [batch(scheduler)[0].request.session for _ in range(3)] == ["fast", "middle", "slow"]


def test_a_newer_observation_keeps_its_sessions_place() -> None:
    scheduler = Scheduler(max_batch=1)
    scheduler.admit(ticket("eager", id=1, deadline_s=1.0))
    scheduler.admit(ticket("other", deadline_s=2.0))
    scheduler.admit(ticket("eager", id=2, deadline_s=5.0))
    assert batch(scheduler)[0].request.session == "eager"


def test_expired_requests_are_never_computed() -> None:
    scheduler = Scheduler()
    late, good = ticket("late", deadline_s=1.0), ticket("good", deadline_s=2.0)
    scheduler.admit(late)
    scheduler.admit(good)
    assert scheduler.next_expiry() == 1.0
    assert batch(scheduler, now=1.0) == [good]
    assert scheduler.expire(1.0) == [late]
    assert scheduler.next_expiry() is None


def test_a_batch_holds_one_version() -> None:
    scheduler = Scheduler(max_batch=4)
    tickets = [ticket(name, deadline_s=deadline) for name, deadline in zip("abcd", (1, 2, 3, 4), strict=True)]
    versions = dict(zip(tickets, ("old", "new", "old", "new"), strict=True))
    for waiting in tickets:
        scheduler.admit(waiting)
    assert scheduler.next_batch(0.0, versions) == [tickets[0], tickets[2]]
    assert scheduler.next_batch(0.0, versions) == [tickets[1], tickets[3]]


def test_a_ticket_of_unknown_version_stays() -> None:
    scheduler = Scheduler()
    known, unknown = ticket("known"), ticket("unknown")
    scheduler.admit(known)
    scheduler.admit(unknown)
    assert scheduler.next_batch(0.0, {known: "v"}) == [known]
    assert scheduler.waiting() == [unknown]


def test_cancel_and_full() -> None:
    scheduler = Scheduler(max_sessions=1)
    waiting = ticket("a")
    scheduler.admit(waiting)
    assert scheduler.full_for(ticket("b"))
    assert not scheduler.full_for(ticket("a", id=2))
    assert scheduler.cancel(waiting.session) is waiting
    assert scheduler.cancel(waiting.session) is None
    assert not scheduler.full_for(ticket("b"))


def test_nobody_waits_for_company_who_has_none_or_has_waited_enough() -> None:
    scheduler = Scheduler(max_batch=2, window_s=0.002)
    assert scheduler.hold(0.0) == 0.0
    scheduler.admit(ticket("a", arrived=10.0))
    assert scheduler.hold(10.0) == 0.0, "no other session is active"
    batch(scheduler, 10.0)
    scheduler.admit(ticket("b", arrived=10.1))
    assert scheduler.hold(10.1) == pytest.approx(0.002), "a may ask again any moment"
    assert scheduler.hold(10.2) == 0.0
    scheduler.admit(ticket("a", id=2, arrived=10.101))
    assert scheduler.hold(10.101) == 0.0, "the batch is full"
    batch(scheduler, 10.101)
    scheduler.admit(ticket("b", id=2, arrived=20.0))
    assert scheduler.hold(20.0) == 0.0, "a has been silent for long"
    batch(scheduler, 20.0)
    scheduler.admit(ticket("a", id=3, arrived=20.1))
    assert scheduler.hold(20.1) > 0.0
    scheduler.cancel((b"b", "b"))
    assert scheduler.hold(20.1) == 0.0, "b has left"


def test_a_patient_session_is_not_starved_by_urgent_ones() -> None:
    scheduler = Scheduler(max_batch=1)
    scheduler.admit(ticket("patient", deadline_s=1000.0))
    for step in range(PATIENCE + 2):
        for name in ("urgent", "hasty"):
            scheduler.admit(ticket(name, id=step, arrived=step, deadline_s=1.5))
        if batch(scheduler, step)[0].request.session == "patient":
            return
    raise AssertionError("starved")


def of_peer(peer: str, session: int, id: int, arrived: float, deadline_s: float) -> Ticket:
    request = InferRequest(id, str(session), SHOWN, observed_at=0.0, deadline_ms=1000 * deadline_s)
    return Ticket(request, peer.encode(), arrived, arrived + deadline_s, answer)


@pytest.mark.parametrize("max_batch", [1, 2, 4])
@pytest.mark.parametrize("sessions", [1, 3, 32])
def test_whoever_floods_costs_another_at_most_one_batch(max_batch: int, sessions: int) -> None:
    """The flood has always the earliest deadline, and is asked again the moment it was computed."""
    scheduler, waited = Scheduler(max_batch), 0
    scheduler.admit(of_peer("robot", 0, 0, 0.0, 100.0))
    for step in range(60):
        for session in range(sessions):
            scheduler.admit(of_peer("flood", session, step, step, 0.9))
        chosen = batch(scheduler, step)
        if any(one.peer == b"robot" for one in chosen):
            assert waited <= 1, step
            waited = 0
            scheduler.admit(of_peer("robot", 0, step + 1, step, 100.0))
        else:
            waited += 1
    assert waited <= 1


def test_one_peer_cannot_fill_the_table() -> None:
    scheduler = Scheduler(max_sessions=6)
    flood = [of_peer("flood", n, 1, 0.0, 1.0) for n in range(6)]
    admitted = [scheduler.admit(one) for one in flood if not scheduler.full_for(one)]
    assert len(admitted) == len(scheduler) == 3
    assert not scheduler.full_for(of_peer("flood", 0, 2, 0.0, 1.0)), "one that waits may be replaced"
    assert not scheduler.full_for(of_peer("robot", 0, 1, 0.0, 1.0))


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: each ticket leaves once, batches are lawful, nobody starves."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(max_batch=2, max_sessions=5)
        self.now = 0.0
        self.ids: Counter[str] = Counter()
        self.admitted: list[Ticket] = []
        self.left: Counter[Ticket] = Counter()
        self.passed_over: Counter[str] = Counter()

    @rule(
        session=st.sampled_from("abcdef"),
        deadline_s=st.floats(0.1, 50),
        step=st.sampled_from([1, 1, 1, 2, -1]),
    )
    def admit(self, session: str, deadline_s: float, step: int) -> None:
        self.ids[session] += step
        new = ticket(session, self.ids[session], self.now, deadline_s)
        if self.scheduler.full_for(new):
            return
        before = {waiting.request.session: waiting for waiting in self.scheduler.waiting()}.get(session)
        self.admitted.append(new)
        superseded = self.scheduler.admit(new)
        newer = before is None or new.request.id > before.request.id
        assert superseded is (before if newer else new)
        if superseded:
            self.left[superseded] += 1

    @rule(seconds=st.floats(0.0, 5.0))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        for late in self.scheduler.expire(self.now):
            assert late.expires <= self.now
            self.gone(late)

    @rule(session=st.sampled_from("abcdef"))
    def cancel(self, session: str) -> None:
        if found := self.scheduler.cancel((session.encode(), session)):
            self.gone(found)

    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        waiting = self.scheduler.waiting()
        versions = {one: data.draw(st.sampled_from(["old", "new"])) for one in waiting}
        chosen = self.scheduler.next_batch(self.now, versions)
        ready = [one for one in waiting if one.expires > self.now]
        assert bool(chosen) == bool(ready)
        assert len(chosen) <= 2
        assert len({versions[one] for one in chosen}) <= 1
        assert all(one.expires > self.now for one in chosen)
        for one in ready if chosen else []:
            self.passed_over[one.request.session] += 1
        for one in chosen:
            self.gone(one)

    def gone(self, one: Ticket) -> None:
        self.left[one] += 1
        self.passed_over[one.request.session] = 0

    @invariant()
    def each_ticket_leaves_once(self) -> None:
        waiting = Counter(self.scheduler.waiting())
        for one in self.admitted:
            assert self.left[one] + waiting[one] == 1

    @invariant()
    def at_most_one_waits_per_session(self) -> None:
        sessions = [one.session for one in self.scheduler.waiting()]
        assert len(sessions) == len(set(sessions)) <= 5

    @invariant()
    def nobody_starves(self) -> None:
        assert max(self.passed_over.values(), default=0) <= PATIENCE + 5


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
