"""Counts and latencies of a server, cheap enough to keep for every request."""

from __future__ import annotations

import resource
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Hashable, Iterable
from pathlib import Path

WINDOW = 2048  # latest samples a quantile is taken over
QUANTILES = (0.5, 0.95, 0.99)
ACTIVE_S = 10.0  # a session that asked within this time counts as there
MOST_SESSIONS = 4096


class Meter:
    """Counts by name, and quantiles over the latest samples by name. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._samples: dict[str, deque[float]] = {}

    def count(self, name: str, by: int = 1) -> None:
        with self._lock:
            self._counts[name] += by

    def answered(self, timings_ms: Iterable[tuple[str, float]]) -> None:
        """Of one request."""
        self.count("answered")
        self.observe(timings_ms)

    def observe(self, samples_ms: Iterable[tuple[str, float]]) -> None:
        with self._lock:
            for name, value in samples_ms:
                if name not in self._samples:
                    self._samples[name] = deque(maxlen=WINDOW)
                self._samples[name].append(value)

    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)

    def latency_ms(self) -> dict[str, dict[str, float]]:
        """By name: p50, p95, p99 and max over the latest samples, and how many those are."""
        with self._lock:
            copies = {name: list(samples) for name, samples in self._samples.items()}
        return {name: _summary(sorted(samples)) for name, samples in copies.items()}


class Sessions:
    """Which robots asked lately. Brings no lock."""

    def __init__(self) -> None:
        self._heard: OrderedDict[Hashable, float] = OrderedDict()  # monotonic, s; the latest comes last

    def heard(self, session: Hashable, at: float) -> None:
        self._heard[session] = at
        self._heard.move_to_end(session)
        if len(self._heard) > MOST_SESSIONS:
            self._heard.popitem(last=False)

    def left(self, session: Hashable) -> None:
        self._heard.pop(session, None)

    def active(self, at: float) -> int:
        """Those heard in the last seconds."""
        while self._heard and at - next(iter(self._heard.values())) > ACTIVE_S:
            self._heard.popitem(last=False)
        return len(self._heard)


def _summary(ordered: list[float]) -> dict[str, float]:
    quantiles = {f"p{100 * q:.0f}": quantile(ordered, q) for q in QUANTILES}
    return {**quantiles, "max": ordered[-1], "n": len(ordered)}


def quantile(ordered: list[float], q: float) -> float:
    """The nearest-rank quantile of a sorted list that is not empty."""
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def resident_bytes() -> int:
    """Memory that this process has in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
