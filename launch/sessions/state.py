"""What a session has done, and what it may do now. No I/O; the dataset says for itself how many demonstrations there
are.

Tuning goes on beside the person, so there are two sides. The job: idle -> tuning -> asking -> publishing -> idle, and
back to idle from each. The person: demonstrates while rounds are left to be begun, tries a version once it is live.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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

    @property
    def taught(self) -> list[str]:
        """Those of them that were not rolled back."""
        return [version for version in self.published if not self._rolled_back(version)]

    def _rolled_back(self, version: str) -> bool:
        return any(entry.rolled_back for entry in self.rounds if entry.version == version)


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
