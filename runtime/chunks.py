"""Chunks of actions into one action per tick, without ever waiting for the server.

The buffer counts ticks really executed. A chunk's action i belongs i ticks after the moment its observation was
taken; the actions that latency made stale are dropped, and so the arm never goes back in time. When nothing is left
the buffer says so (None): the caller holds.

Three ways to come from one chunk to the next:
- sync: execute, then hold while the next one is computed, as runtimes without a buffer do;
- async: ask ahead, and replace what is left of the old chunk (or blend it into the new one);
- rtc: as async, and tell the server what is being executed meanwhile. A chunk that is guided by it begins where the arm
  will be, and replaces the old one as it is. One that is not (no such server, another version) comes as in async.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from hotpolicy.runtime import clock
from hotpolicy.runtime.errors import BadReply
from hotpolicy.runtime.messages import ActionChunk, Rtc
from hotpolicy.runtime.rtc import Schedule

WINDOW = 32  # latest latencies that lead and delay are taken from
QUANTILE = 0.95

Chunking = Literal["sync", "async", "rtc"]


@dataclass(frozen=True, slots=True)
class Guiding:
    """How firmly a chunk is held to the one before it; see `messages.Rtc`."""

    schedule: Schedule = "exp"
    execution_horizon: int | None = None  # actions from the observation on; None: all that are left
    max_weight: float = 2.0  # 5 and 10 jump less, and fail more often (bench/rtc_stepped.py)


class ChunkBuffer:
    """Use each tick: `if buffer.should_ask(): buffer.asked(client.ask(...))`, `buffer.put(chunk)` when one has come,
    and `buffer.next()` for the action, or None: hold."""

    def __init__(
        self,
        rate_hz: float,
        replan: int | None = None,
        blend: int = 0,
        max_age_s: float = math.inf,
        chunking: Chunking = "async",
        guiding: Guiding = Guiding(),
        now: Callable[[], float] = clock.now,
    ):
        """`replan`: have a newer chunk after so many executed actions; None: when this one runs out.
        `blend`: ticks over which the actions of a new chunk that is not guided take over from the old one's; 0: at
        once. `max_age_s`: actions of an observation older than this are stale, whatever is left of them."""
        if not rate_hz > 0 or blend < 0 or (replan is not None and replan < 1):
            raise ValueError(f"expected rate_hz > 0, blend >= 0, replan >= 1, got {rate_hz}, {blend}, {replan}")
        if chunking not in get_args(Chunking):
            raise ValueError(f"chunking: expected one of {', '.join(get_args(Chunking))}, got {chunking!r}")
        self.rate_hz, self.replan, self.blend, self.max_age_s = rate_hz, replan, blend, max_age_s
        self.chunking, self.guiding = chunking, guiding
        self.executed = 0  # ticks for which an action was handed out
        self.holds = 0  # ticks for which there was none
        self.chunk: ActionChunk | None = None  # the one being executed
        self._now = now
        self._actions: deque[np.ndarray] = deque()
        self._begun = 0  # `executed` when the observation of the chunk in use was taken
        self._asked: _Asked | None = None
        self._latencies: deque[float] = deque(maxlen=WINDOW)  # s
        self._delays: deque[int] = deque(maxlen=WINDOW)  # the same answers, in ticks of the loop
        self._cold = True
        self._cold_delay = 0  # ticks

    def __len__(self) -> int:
        """Actions left."""
        return len(self._actions)

    @property
    def index(self) -> int:
        """Place in `chunk` of the action that is next, counted from its observation."""
        return self.executed - self._begun

    def lead(self) -> int:
        """Ticks before the end at which to ask, from the measured latency: its p95, and one tick for the loop."""
        return math.ceil(_p95(self._latencies) * self.rate_hz) + 1 if self._latencies else 2

    def delay(self) -> int:
        """Ticks from an observation until its answer is in use: their p95. Counted in ticks that the loop really made,
        so that neither its jitter nor a slow tick is taken for an action. With nothing else to go by it is the cold
        start's: too long a delay holds on to the old plan for longer, too short a one makes the arm jump."""
        return int(_p95(self._delays)) if self._delays else self._cold_delay

    def rtc(self) -> Rtc | None:
        """What to tell the server with an observation taken in this tick, before its action. None when nothing is being
        executed, or in another way of chunking."""
        if self.chunking != "rtc" or self.chunk is None or self.stale():
            return None
        left, asked = len(self._actions), self.guiding.execution_horizon
        return Rtc(
            previous=self.chunk.request_id,
            executed=self.index,
            delay=min(self.delay(), left),
            execution_horizon=left if asked is None else min(asked, left),
            schedule=self.guiding.schedule,
            max_weight=self.guiding.max_weight,
        )

    def should_ask(self) -> bool:
        """Whether to send an observation in this tick. False while an answer is awaited."""
        if self._asked is not None:
            return False
        if self.chunking == "sync":
            return self.stale() or (self.replan is not None and self.index >= self.replan)
        if len(self._actions) <= self.lead():
            return True
        return self.replan is not None and self.index >= self.replan - self.lead()

    def asked(self, request_id: int) -> None:
        """An observation taken in this tick, before its action, has been sent under this id."""
        if self.chunking == "sync":
            self._actions.clear()
        self._asked = _Asked(request_id, self.executed, self.executed + self.holds, self._now())

    def give_up(self) -> None:
        """The answer awaited will not come (expired, lost, refused): ask again."""
        self._asked = None

    def put(self, chunk: ActionChunk) -> bool:
        """Use a chunk from now on. False, and nothing changes, when it is not the answer awaited (late, or of an
        episode that ended). Raises BadReply when its actions are not of the arm in use."""
        asked = self._asked
        if asked is None or chunk.request_id != asked.id:
            return False
        self._asked = None
        if self.chunk is not None and chunk.actions.shape[1] != self.chunk.actions.shape[1]:
            raise BadReply(f"actions: expected {self.chunk.actions.shape[1]} joints, got {chunk.actions.shape[1]}")
        delay = self.executed + self.holds - asked.tick
        if self._cold:  # the first answer pays for compilation and caches; it says nothing of the next
            self._cold, self._cold_delay = False, delay
        else:
            self._latencies.append(self._now() - asked.at)
            self._delays.append(delay)
        fresh = chunk.actions[self.executed - asked.executed :]
        self._actions = deque(list(fresh) if chunk.guided else self._blended(fresh))
        self._begun, self.chunk = asked.executed, chunk
        return True

    def next(self) -> np.ndarray | None:
        """This tick's action (joints,) float32; or None when there is none that is fresh: hold."""
        if not self._actions or self.stale():
            self.holds += 1
            return None
        self.executed += 1
        return self._actions.popleft()

    def stale(self) -> bool:
        """Whether what is left must not be executed any more."""
        return self.chunk is None or not self._actions or self._now() - self.chunk.observed_at > self.max_age_s

    def clear(self) -> None:
        """Forget the chunk and the answer awaited: a new episode, or an operator took over."""
        self._actions.clear()
        self.chunk = self._asked = None

    def _blended(self, fresh: np.ndarray) -> list[np.ndarray]:
        rows = list(fresh)
        overlap = 0 if self.stale() else min(self.blend, len(rows), len(self._actions))
        for tick, old in zip(range(overlap), self._actions, strict=False):
            share = np.float32((tick + 1) / (overlap + 1))
            rows[tick] = old + share * (rows[tick] - old)
        return rows


@dataclass(frozen=True, slots=True)
class _Asked:
    id: int
    executed: int  # the buffer's, then
    tick: int  # of the loop, those that held among them
    at: float  # s


def _p95(values: deque[float] | deque[int]) -> float:
    return sorted(values)[min(len(values) - 1, int(QUANTILE * len(values)))]
