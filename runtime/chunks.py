"""Chunks of actions into one action per tick, without ever waiting for the server.

The buffer counts ticks really executed. A chunk's action i belongs i ticks after the moment its observation was
taken; the actions that latency made stale are dropped, and so the arm never goes back in time. When nothing is left
the buffer says so (None): the caller holds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import numpy as np

from hotpolicy.runtime import clock
from hotpolicy.runtime.errors import BadReply
from hotpolicy.runtime.messages import ActionChunk

WINDOW = 32  # latest latencies the lead is taken from
QUANTILE = 0.95


class ChunkBuffer:
    """Use each tick: `if buffer.should_ask(): buffer.asked(client.ask(...))`, `buffer.put(chunk)` when one has come,
    and `buffer.next()` for the action, or None: hold."""

    def __init__(
        self,
        rate_hz: float,
        replan: int | None = None,
        blend: int = 0,
        max_age_s: float = math.inf,
        now: Callable[[], float] = clock.now,
    ):
        """`replan`: have a newer chunk after so many executed actions; None: when this one runs out.
        `blend`: ticks over which the actions of a new chunk take over from the old one's; 0: at once.
        `max_age_s`: actions of an observation older than this are stale, whatever is left of them."""
        if not rate_hz > 0 or blend < 0 or (replan is not None and replan < 1):
            raise ValueError(f"expected rate_hz > 0, blend >= 0, replan >= 1, got {rate_hz}, {blend}, {replan}")
        self.rate_hz, self.replan, self.blend, self.max_age_s = rate_hz, replan, blend, max_age_s
        self.executed = 0  # ticks for which an action was handed out
        self.holds = 0  # ticks for which there was none
        self.chunk: ActionChunk | None = None  # the one being executed
        self._now = now
        self._actions: deque[np.ndarray] = deque()
        self._begun = 0  # `executed` when the observation of the chunk in use was taken
        self._asked: tuple[int, int, float] | None = None  # request id, `executed` then, when
        self._latencies: deque[float] = deque(maxlen=WINDOW)
        self._cold = True

    def __len__(self) -> int:
        """Actions left."""
        return len(self._actions)

    def lead(self) -> int:
        """Ticks before the end at which to ask, from the measured latency: its p95, and one tick for the loop."""
        if not self._latencies:
            return 2
        ordered = sorted(self._latencies)
        return math.ceil(ordered[min(len(ordered) - 1, int(QUANTILE * len(ordered)))] * self.rate_hz) + 1

    def should_ask(self) -> bool:
        """Whether to send an observation in this tick. False while an answer is awaited."""
        if self._asked is not None:
            return False
        if len(self._actions) <= self.lead():
            return True
        return self.replan is not None and self.executed - self._begun >= self.replan - self.lead()

    def asked(self, request_id: int) -> None:
        """An observation taken in this tick, before its action, has been sent under this id."""
        self._asked = (request_id, self.executed, self._now())

    def give_up(self) -> None:
        """The answer awaited will not come (expired, lost, refused): ask again."""
        self._asked = None

    def put(self, chunk: ActionChunk) -> bool:
        """Use a chunk from now on. False, and nothing changes, when it is not the answer awaited (late, or of an
        episode that ended). Raises BadReply when its actions are not of the arm in use."""
        if self._asked is None or chunk.request_id != self._asked[0]:
            return False
        _, begun, asked_at = self._asked
        self._asked = None
        if self.chunk is not None and chunk.actions.shape[1] != self.chunk.actions.shape[1]:
            raise BadReply(f"actions: expected {self.chunk.actions.shape[1]} joints, got {chunk.actions.shape[1]}")
        if not self._cold:
            self._latencies.append(self._now() - asked_at)
        self._cold = False  # the first answer pays for compilation and caches; it says nothing of the next
        fresh = chunk.actions[self.executed - begun :]
        self._actions = deque(self._blended(fresh))
        self._begun, self.chunk = begun, chunk
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
