"""What a session has done and what comes next: a table of transitions, and the file it survives a kill in. No I/O but
`load` and `save`; the dataset says for itself how many demonstrations there are.

Tuning goes on beside the person, so there are two sides. The job: idle -> tuning -> asking -> publishing -> idle, and
back to idle from each. The person: demonstrates while rounds are left to be begun, tries a version once it is live.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from hotpolicy.runtime import durable
from hotpolicy.runtime.errors import ConfigError, TuningError

FILE = "session.json"

Phase = Literal["idle", "tuning", "asking", "publishing"]
Activity = Literal["try", "collect", "wait", "done"]
Outcome = Literal["passed", "live", "refused", "left", "not live"]


@dataclass(frozen=True, slots=True)
class Job:
    """A tuning run, whole: given again after a kill, it is the same run."""

    name: str
    base: str  # version it starts from
    until: int  # it learns from the episodes before this one ...
    since: int  # ... of which the version has not seen those from here on
    seed: int


@dataclass(frozen=True, slots=True)
class Round:
    """A version that came of a job, or the one there was before (number 0)."""

    number: int
    version: str
    outcome: Outcome
    reasons: tuple[str, ...] = ()
    episodes: int = 0  # demonstrations there were
    wins: int = 0
    tries: int = 0  # episodes of the policy
    error_before: float | None = None  # held-out action error of the new tasks, deg; of the version it came from
    error: float | None = None  # its own
    rolled_back: bool = False


@dataclass(frozen=True, slots=True)
class State:
    name: str  # of the session, in the names of its jobs and requests
    phase: Phase = "idle"
    job: Job | None = None  # while tuning
    lost: int = 0  # processes of this job that were killed
    learned: int = 0  # episodes the jobs so far were given
    rounds: tuple[Round, ...] = ()

    @property
    def begun(self) -> int:
        """Rounds whose job was begun."""
        return sum(entry.number > 0 for entry in self.rounds) + (self.phase == "tuning")

    @property
    def published(self) -> list[str]:
        return [entry.version for entry in self.rounds if entry.number and entry.outcome == "live"]


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


def on_trial(state: State, tries: int) -> Round | None:
    """The version the person should try now, if there is one."""
    live = [entry for entry in state.rounds if entry.outcome == "live"]
    return live[-1] if live and live[-1].tries < tries and not live[-1].rolled_back else None


def may_begin(state: State, sealed: int, *, rounds: int, episodes: int) -> bool:
    """Whether `sealed` demonstrations are enough for the next job."""
    return state.phase == "idle" and state.begun < rounds and sealed >= state.learned + episodes


def activity(state: State, sealed: int, *, rounds: int, episodes: int, tries: int) -> Activity:
    """What the person does now: try what became live, else demonstrate as much as the next job needs, else wait for
    the one that runs."""
    if on_trial(state, tries):
        return "try"
    given = state.job.until if state.job else state.learned
    if state.begun < rounds and sealed < given + episodes:
        return "collect"
    return "done" if state.phase == "idle" and state.begun >= rounds else "wait"


def load(folder: Path) -> State:
    """A session that has done nothing where there is none. Raises ConfigError when the file is damaged."""
    path = folder / FILE
    if not path.exists():
        return State(uuid.uuid4().hex[:12])
    try:
        state = read(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path}: expected a session's state: {type(error).__name__}: {error}") from error
    if state.phase not in ALWAYS or (state.phase == "tuning") != (state.job is not None):
        raise ConfigError(f"{path}: phase: expected one of {', '.join(ALWAYS)} with its job, got {state.phase!r}")
    return state


def save(folder: Path, state: State) -> None:
    """Durable when it returns; readers see the old state or the new."""
    durable.replace_file(folder / FILE, written(state))


def written(state: State) -> bytes:
    return json.dumps(asdict(state), indent=2).encode()


def read(data: Any) -> State:
    """What `written` wrote, parsed. Raises TypeError, KeyError or AttributeError for anything else."""
    rounds = tuple(Round(**{**entry, "reasons": tuple(entry["reasons"])}) for entry in data["rounds"])
    return State(**{**data, "rounds": rounds, "job": Job(**data["job"]) if data["job"] else None})
