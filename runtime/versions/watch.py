"""Whether the version that serves may go on serving: a pure decision over what it answers. No clock, no threads.

A version is judged against the one before it, because going back to that one must help. It goes back when
1. its answers leave the joints' ranges, or jump from one action to the next, far beyond what a policy means to do, and
   far more often than the version before did; one that was seen little excuses much, one that is not known all;
2. it is slower than the version before, batch by batch of the same size, window after window. A busy machine is no
   reason: it has a fast moment now and then, so that the fastest quarter of a window must be too slow as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from statistics import median
from typing import Literal

import numpy as np

from hotpolicy.runtime.messages import RobotSpec

ANSWERS = 100  # newest answers among which trips are counted
WINDOW = 20  # batches of one size in a window of latencies
WINDOWS = 3  # windows in a row that must be late
KEPT = 8  # newest windows that say how fast a version is

Cause = Literal["faults", "limits", "steps", "latency"]


@dataclass(frozen=True, slots=True)
class Guard:
    """The bounds for a version in service. None: not watched."""

    margin: float | None = 0.5  # an action leaves a joint's range by more than this part of it: a trip
    step: float | None = 0.3  # an action moves the joints on by more than this part of their ranges, on average: a trip
    trips: int = 3  # of the newest 100 answers at least
    slowdown: float | None = 4.0  # p95 of a window, and its fastest quarter, as multiples of the version before
    grace_ms: float = 5.0  # added to that bound, so that very fast policies do not go back for noise


OFF = Guard(margin=None, step=None, slowdown=None)


@dataclass(frozen=True, slots=True)
class Pace:
    """Of batches of one size, ms."""

    fast: float  # p25
    slow: float  # p95

    @classmethod
    def of(cls, window: Sequence[float]) -> Pace:
        ordered = sorted(window)
        return cls(ordered[len(ordered) // 4], ordered[int(0.95 * len(ordered))])


@dataclass(frozen=True, slots=True)
class Record:
    """What a version did in service; the next one is measured by it."""

    answers: int = 0
    trips: Mapping[Cause, int] = field(default_factory=dict)  # answers with one
    paces: Mapping[int, Pace] = field(default_factory=dict)  # by batch size


@dataclass(frozen=True, slots=True)
class Trip:
    """Why a version must go."""

    cause: Cause
    reason: str


@dataclass(frozen=True, slots=True)
class Reach:
    """How far the answers of a batch go, each as part of the joints' ranges."""

    beyond: np.ndarray  # (n,) the farthest that a joint leaves its range; negative: it does not
    step: np.ndarray  # (n,) the largest move from one action to the next, mean over the joints

    @classmethod
    def of(cls, actions: np.ndarray, low: np.ndarray, high: np.ndarray) -> Reach:
        """actions (n, horizon, joints), finite; low and high (joints,)."""
        parts = (actions - low) / np.maximum(high - low, 1e-9)  # 0 to 1 within the range
        beyond = np.maximum(-parts.min(axis=(1, 2)), parts.max(axis=(1, 2)) - 1)
        if actions.shape[1] == 1:
            return cls(beyond, np.zeros(len(actions)))
        return cls(beyond, np.abs(parts[:, 1:] - parts[:, :-1]).mean(axis=2).max(axis=1))


class Watch:
    """One version from its promotion on. `note` is for one thread; `record` may be taken by another."""

    def __init__(self, version: str, spec: RobotSpec, guard: Guard, before: Record | None = None):
        """`before`: of the version there is to go back to; None: there is none, and nothing is decided."""
        self.version = version
        self._guard, self._before = guard, before
        self._low = np.array([joint.low for joint in spec.joints], np.float32)
        self._high = np.array([joint.high for joint in spec.joints], np.float32)
        self._trips: dict[Cause, deque[bool]] = {cause: deque(maxlen=ANSWERS) for cause in ("limits", "steps")}
        self._window: dict[int, list[float]] = {}  # by batch size: the one that fills
        self._windows: dict[int, deque[Pace]] = {}
        self._late: dict[int, int] = {}  # windows in a row

    def note(self, actions: np.ndarray, ms: float) -> Trip | None:
        """A batch was answered: (n, horizon, joints) finite, in so long. The reason to go back, if there is one now."""
        reach = Reach.of(actions, self._low, self._high)
        guard = self._guard
        watched: tuple[tuple[Cause, np.ndarray, float | None], ...] = (
            ("limits", reach.beyond, guard.margin),
            ("steps", reach.step, guard.step),
        )
        for cause, reached, bound in watched:
            if bound is None:
                continue
            tripped = reached > bound
            self._trips[cause].extend(tripped.tolist())
            if tripped.any() and (count := self._too_many(cause)):
                farthest = float(reached.max())
                return Trip(cause, f"{_words(cause, farthest, bound)} in {count} of {len(self._trips[cause])} answers")
        return self._timed(len(actions), ms)

    def record(self, golden: np.ndarray | None = None) -> Record:
        """What the next version is measured by. `golden`: what this one answered when it was tried, as evidence of
        its manners before it served much."""
        trips = {cause: sum(list(tripped)) for cause, tripped in self._trips.items()}
        answers = max(len(tripped) for tripped in self._trips.values())
        if golden is not None:
            reach, guard = Reach.of(golden, self._low, self._high), self._guard
            trips["limits"] += int((reach.beyond > guard.margin).sum()) if guard.margin is not None else 0
            trips["steps"] += int((reach.step > guard.step).sum()) if guard.step is not None else 0
            answers += len(golden)
        windows = {size: list(paces) for size, paces in list(self._windows.items())}
        return Record(answers, trips, {size: _usual(paces) for size, paces in windows.items()})

    def _too_many(self, cause: Cause) -> int:
        """The number of trips among the newest answers when it is too many, else 0."""
        if self._before is None:
            return 0
        trips, answers = sum(self._trips[cause]), len(self._trips[cause])
        rate = (self._before.trips.get(cause, 0) + 1) / (self._before.answers + 1)
        expected = answers * rate
        # twice as often as before, and by six deviations of such a count: chance alone does not get there
        return trips if trips >= self._guard.trips + 2 * expected + 6 * sqrt(expected) else 0

    def _timed(self, size: int, ms: float) -> Trip | None:
        window = self._window.setdefault(size, [])
        window.append(ms)
        if len(window) < WINDOW:
            return None
        pace = Pace.of(window)
        window.clear()
        self._windows.setdefault(size, deque(maxlen=KEPT)).append(pace)
        before = self._before.paces.get(size) if self._before else None
        if before is None or self._guard.slowdown is None:
            return None
        bound = Pace(*(part * self._guard.slowdown + self._guard.grace_ms for part in (before.fast, before.slow)))
        late = pace.fast > bound.fast and pace.slow > bound.slow
        self._late[size] = self._late.get(size, 0) + 1 if late else 0
        if self._late[size] < WINDOWS:
            return None
        return Trip(
            "latency",
            f"p95 {pace.slow:.1f} ms for {size} at once in {WINDOWS} windows of {WINDOW} in a row, the version before "
            f"took {before.slow:.1f} ms, expected at most {bound.slow:.1f} ms",
        )


def _usual(paces: Sequence[Pace]) -> Pace:
    return Pace(median(pace.fast for pace in paces), median(pace.slow for pace in paces))


def _words(cause: Cause, reached: float, bound: float) -> str:
    if cause == "limits":
        return f"actions left a joint's range by up to {reached:.0%} of it, expected at most {bound:.0%},"
    return f"one action moved the joints on by up to {reached:.0%} of their ranges, expected at most {bound:.0%},"
