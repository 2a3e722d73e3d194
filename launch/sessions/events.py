"""What may happen in a session, and what it is afterwards: a table of transitions. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, get_args

from hotpolicy.launch.sessions.state import Job, Phase, Round, State
from hotpolicy.runtime.errors import TuningError


@dataclass(frozen=True, slots=True)
class Begin:
    """There are demonstrations enough for a job."""

    base: str
    until: int
    seed: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The job's process was killed: it is given again."""


@dataclass(frozen=True, slots=True)
class Judged:
    """The job is done and the gate has spoken."""

    version: str
    passed: bool
    reasons: tuple[str, ...] = ()
    error_before: float | None = None
    error: float | None = None


@dataclass(frozen=True, slots=True)
class Promote:
    """By the person, or at once with `auto`."""


@dataclass(frozen=True, slots=True)
class Leave:
    """The person does not want the version."""


@dataclass(frozen=True, slots=True)
class Live:
    """The server serves the version."""


@dataclass(frozen=True, slots=True)
class NotLive:
    reason: str


@dataclass(frozen=True, slots=True)
class Baseline:
    """What is live before anything was taught is tried, too."""

    version: str


@dataclass(frozen=True, slots=True)
class Tried:
    won: bool


@dataclass(frozen=True, slots=True)
class RolledBack:
    """A version that this session had made live is live no more."""

    version: str


Event = Begin | Lost | Judged | Promote | Leave | Live | NotLive | Baseline | Tried | RolledBack


def _begin(state: State, event: Begin) -> State:
    seen = [entry.episodes for entry in state.rounds if entry.outcome == "live" and not entry.rolled_back]
    job = Job(f"{state.name}-{state.begun + 1}", event.base, event.until, max(seen, default=0), event.seed)
    return replace(state, job=job, lost=0)


def _judged(state: State, event: Judged) -> State:
    assert state.job is not None
    entry = Round(
        number=state.begun,
        version=event.version,
        outcome="passed" if event.passed else "refused",
        reasons=event.reasons,
        episodes=state.job.until,
        error_before=event.error_before,
        error=event.error,
    )
    return replace(state, job=None, lost=0, learned=state.job.until, rounds=(*state.rounds, entry))


def _newest(state: State, **changes: Any) -> State:
    return replace(state, rounds=(*state.rounds[:-1], replace(state.rounds[-1], **changes)))


def _tried(state: State, event: Tried) -> State:
    """Counts for the newest version that is live."""
    rounds = list(state.rounds)
    index = max((i for i, entry in enumerate(rounds) if entry.outcome == "live"), default=None)
    if index is None:
        raise TuningError("session: expected a version that is live before one is tried")
    was = rounds[index]
    rounds[index] = replace(was, wins=was.wins + event.won, tries=was.tries + 1)
    return replace(state, rounds=tuple(rounds))


def _rolled_back(state: State, event: RolledBack) -> State:
    def told(entry: Round) -> Round:
        return replace(entry, rolled_back=True) if entry.version == event.version else entry

    return replace(state, rounds=tuple(told(entry) for entry in state.rounds))


def _baseline(state: State, event: Baseline) -> State:
    return replace(state, rounds=(Round(0, event.version, "live"),))


Change = Callable[[State, Any], State]
ALWAYS: tuple[Phase, ...] = get_args(Phase)

# (phase, event) -> the phase after it, and what else changes. What is not here cannot happen.
TRANSITIONS: dict[tuple[Phase, type], tuple[Phase, Change]] = {
    ("idle", Begin): ("tuning", _begin),
    ("tuning", Lost): ("tuning", lambda state, event: replace(state, lost=state.lost + 1)),
    ("tuning", Judged): ("asking", _judged),  # or idle: see `advance`
    ("asking", Promote): ("publishing", lambda state, event: state),
    ("asking", Leave): ("idle", lambda state, event: _newest(state, outcome="left")),
    ("publishing", Live): ("idle", lambda state, event: _newest(state, outcome="live")),
    ("publishing", NotLive): ("idle", lambda state, event: _newest(state, outcome="not live", reasons=(event.reason,))),
    ("idle", Baseline): ("idle", _baseline),
    **{(phase, Tried): (phase, _tried) for phase in ALWAYS},
    **{(phase, RolledBack): (phase, _rolled_back) for phase in ALWAYS},
}


def advance(state: State, event: Event) -> State:
    """The state after the event. Raises TuningError for one that cannot happen now; the state is the same then."""
    if (state.phase, type(event)) not in TRANSITIONS:
        raise TuningError(f"session: {type(event).__name__} cannot happen while {state.phase}")
    phase, change = TRANSITIONS[state.phase, type(event)]
    if isinstance(event, Judged) and not event.passed:
        phase = "idle"
    return replace(change(state, event), phase=phase)
