"""Who is computed next: a pure decision over waiting requests. No sockets, no clock of its own, no threads.

Rules:
1. A session (a peer and the name it gave) has at most one request waiting: the newest. Older ones are superseded.
2. Peers take turns: one that was computed goes behind those that waited meanwhile, and its second session behind
   everybody's first, so whoever floods costs another at most one batch. Within a turn the earliest deadline goes
   first. A newer observation inherits the place of the one it replaces: a robot that asks often is not pushed back.
3. A peer's first request passed over by `PATIENCE` batches goes before any other: no session starves another.
4. A batch holds one policy version, that of its first request.
5. Every ticket admitted leaves exactly once: in a batch, as superseded, as expired or as cancelled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hotpolicy.runtime.errors import HotpolicyError
from hotpolicy.runtime.messages import ActionChunk, InferRequest

PATIENCE = 4  # batches a waiting request lets pass before it goes first
ACTIVE_S = 1.0  # a session heard of within this time may be worth a moment's wait for a fuller batch

SessionKey = tuple[bytes, str]
Outcome = ActionChunk | HotpolicyError  # what becomes of a request
Answer = Callable[[Outcome], None]


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A request that waits, compared by identity: two robots may well send equal requests."""

    request: InferRequest
    peer: bytes  # whose it is
    arrived: float  # server's monotonic clock, s
    expires: float
    answer: Answer  # called once, by any thread
    session: SessionKey = field(init=False)  # looked up many times

    def __post_init__(self) -> None:
        object.__setattr__(self, "session", (self.peer, self.request.session))


@dataclass(slots=True)
class _Place:
    """A session's place among those who wait; it outlives the ticket it holds."""

    ticket: Ticket
    since: float  # when the session began to wait
    rank: float  # the earliest deadline it has had since then
    turn: int
    passed_over: int = 0


class Scheduler:
    """Single-threaded: whoever shares it brings a lock."""

    def __init__(self, max_batch: int = 4, window_s: float = 0.002, max_sessions: int = 64):
        self.max_batch = max_batch
        self.window_s = window_s  # the longest a request is held back in the hope of a fuller batch
        self.max_sessions = max_sessions
        self.max_of_peer = max(1, max_sessions // 2)  # one peer cannot fill the table
        self._places: dict[SessionKey, _Place] = {}
        self._heard: dict[SessionKey, float] = {}
        self._turn = 0  # of the batch last taken out
        self._next_turn: dict[bytes, int] = {}  # of peers that were computed

    def __len__(self) -> int:
        return len(self._places)

    def full_for(self, ticket: Ticket) -> bool:
        """Whether this session would be one too many, in all or of its peer; such a ticket must not be admitted."""
        if ticket.session in self._places:
            return False
        return len(self._places) >= self.max_sessions or self._of_peer(ticket.peer) >= self.max_of_peer

    def admit(self, ticket: Ticket) -> Ticket | None:
        """Let a ticket wait. Returns the one it supersedes (itself, when a newer one of its session waits already)."""
        if len(self._heard) >= 4 * self.max_sessions:
            self._heard.clear()  # bounded memory; the cost is one batch not waited for
        self._heard[ticket.session] = ticket.arrived
        place = self._places.get(ticket.session)
        if place is None:
            turn = max(self._turn, self._next_turn.get(ticket.peer, 0)) + self._of_peer(ticket.peer)
            self._places[ticket.session] = _Place(ticket, ticket.arrived, ticket.expires, turn)
            return None
        if ticket.request.id <= place.ticket.request.id:
            return ticket
        superseded, place.ticket = place.ticket, ticket
        place.rank = min(place.rank, ticket.expires)
        return superseded

    def cancel(self, session: SessionKey) -> Ticket | None:
        """Take a session's waiting ticket out, if there is one, and expect no more of it."""
        self._heard.pop(session, None)
        place = self._places.pop(session, None)
        return place.ticket if place else None

    def expire(self, now: float) -> list[Ticket]:
        """Take out every ticket whose deadline has passed."""
        late = [place.ticket for place in self._places.values() if place.ticket.expires <= now]
        for ticket in late:
            del self._places[ticket.session]
        return late

    def next_expiry(self) -> float | None:
        return min((place.ticket.expires for place in self._places.values()), default=None)

    def waiting(self) -> list[Ticket]:
        """All tickets, the one to be computed first at the head."""
        return [place.ticket for place in self._in_order()]

    def hold(self, now: float) -> float:
        """Seconds to wait for a fuller batch before calling next_batch; zero: now."""
        count = len(self._places)
        if not count or count >= self.max_batch or not self.window_s:
            return 0.0
        if all(session in self._places for session in self._heard):
            return 0.0
        self._heard = {session: at for session, at in self._heard.items() if now - at < ACTIVE_S}
        if all(session in self._places for session in self._heard):
            return 0.0
        return max(0.0, min(place.since for place in self._places.values()) + self.window_s - now)

    def next_batch(self, now: float, versions: Mapping[Ticket, str]) -> list[Ticket]:
        """Take out the tickets to compute together: at most `max_batch`, all of one version, none past its deadline.

        `versions` says which policy version each waiting ticket is for; a ticket it does not know stays.
        """
        ready = [place for place in self._in_order() if place.ticket in versions and place.ticket.expires > now]
        if not ready:
            return []
        version = versions[ready[0].ticket]
        chosen = [place for place in ready if versions[place.ticket] == version][: self.max_batch]
        self._turn = max(self._turn, chosen[0].turn)
        for place in chosen:
            del self._places[place.ticket.session]
            self._next_turn[place.ticket.peer] = place.turn + 1
        if len(self._next_turn) > 4 * self.max_sessions:
            self._next_turn = {peer: turn for peer, turn in self._next_turn.items() if turn > self._turn}
        if self._places:
            for place in {place.ticket.peer: place for place in reversed(self._in_order())}.values():
                place.passed_over += 1  # each peer's first
        return [place.ticket for place in chosen]

    def _of_peer(self, peer: bytes) -> int:
        return sum(place.ticket.peer == peer for place in self._places.values())

    def _in_order(self) -> list[_Place]:
        places = list(self._places.values())
        return sorted(places, key=_urgency) if len(places) > 1 else places


def _urgency(place: _Place) -> tuple[bool, int, float, float]:
    if place.passed_over >= PATIENCE:
        return (False, 0, place.since, place.since)
    return (True, place.turn, place.rank, place.since)
