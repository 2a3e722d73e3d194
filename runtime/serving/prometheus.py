"""A server's stats as Prometheus reads them, over HTTP on loopback. Made when scraped: serving pays nothing for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.serving.life import NEXT

if TYPE_CHECKING:
    from prometheus_client.core import Metric

Stats = Mapping[str, Any]

DROPS = ("expired", "superseded", "busy", "draining")  # outcomes of requests that were not computed, or too late
CAUSES = ("command", "faults", "limits", "steps", "latency")  # of rollbacks: by hand, or by itself for that reason


class Exposition:
    """Serves stats to Prometheus on 127.0.0.1 until closed. Raises ConfigError when the port is taken."""

    def __init__(self, port: int, stats: Callable[[], dict[str, Any]]):
        try:
            from prometheus_client import CollectorRegistry, start_http_server
        except ImportError as error:
            raise ConfigError("metrics_port: expected the package prometheus-client to be installed") from error
        registry = CollectorRegistry()
        registry.register(_Collector(stats))
        try:
            self._server, self._thread = start_http_server(port, addr="127.0.0.1", registry=registry)
        except OSError as error:
            raise ConfigError(f"metrics_port: cannot listen on 127.0.0.1:{port}: {error.strerror}") from error
        self.port = self._server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Collector:
    def __init__(self, stats: Callable[[], dict[str, Any]]):
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        yield from _requests(stats)
        yield from _process(stats)
        yield from _versions(stats)


def _requests(stats: Stats) -> Iterator[Metric]:
    counts = stats["counts"]
    yield _counter("requests", "Requests by what became of them", ("outcome",), counts.items())
    dropped = [*((reason, counts.get(reason, 0)) for reason in DROPS), ("unsent", stats["unsent"])]
    yield _counter("dropped", "Requests and replies that came to nothing, by reason", ("reason",), dropped)
    fronts = [((front, outcome), n) for front, by in stats["fronts"].items() for outcome, n in by.items()]
    yield _counter("front_requests", "Requests of other runtimes' clients", ("front", "outcome"), fronts)
    quantiles = [
        ((phase, name), value)
        for phase, summary in stats["latency_ms"].items()
        for name, value in summary.items()
        if name != "n"
    ]
    yield _gauge("latency_ms", "Latency over recent requests", ("phase", "quantile"), quantiles)
    yield _gauge("waiting", "Requests waiting to be computed", (), [((), stats["waiting"])])
    yield _gauge("sessions", "Robots that asked in the last seconds", (), [((), stats["sessions"])])


def _process(stats: Stats) -> Iterator[Metric]:
    states = [(state, state == stats["state"]) for state in NEXT]
    yield _gauge("state", "1 for the state the server is in", ("state",), states)
    yield _counter("engine_restarts", "Times a crashed engine was loaded anew", (), [((), stats["restarts"])])
    yield _gauge("uptime_seconds", "Since the server was made", (), [((), stats["uptime_s"])])
    yield _gauge("resident_memory_bytes", "Memory of the process in RAM", (), [((), stats["resident_bytes"])])


def _versions(stats: Stats) -> Iterator[Metric]:
    held = [((role, version), 1) for role, version in stats["versions"].items() if version is not None]
    yield _gauge("version_info", "Policy versions in memory", ("role", "version"), held)
    stalls = [(which, stats["swap_stall_ms"][which]) for which in ("last", "longest")]
    yield _gauge("swap_stall_ms", "Time swaps held the inference thread", ("which",), stalls)
    slot = stats["slot"]
    if not slot:  # one that keeps no figures
        return
    yield _gauge("live_version_seconds", "Since the live version became live", (), [((), slot["live_for_s"])])
    yield _counter("swaps", "Promotions", (), [((), slot["promotions"])])
    yield _counter("swaps_refused", "Candidates that failed their checks", (), [((), slot["refusals"])])
    rollbacks = [(cause, slot["rollbacks"].get(cause, 0)) for cause in CAUSES]
    yield _counter("rollbacks", "Rollbacks, by hand or by itself for a reason", ("cause",), rollbacks)
    yield _gauge("swap_duration_ms", "How long the last swap took", ("phase",), slot["swap_ms"].items())
    yield _gauge("faults", "Faulty answers of the live version", (), [((), slot["faults"])])


Samples = Iterable[tuple[Any, float]]  # a label, or a tuple of labels, and the value


def _counter(name: str, text: str, labels: tuple[str, ...], samples: Samples) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    return _filled(CounterMetricFamily(f"hotpolicy_{name}", text, labels=labels), samples)


def _gauge(name: str, text: str, labels: tuple[str, ...], samples: Samples) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    return _filled(GaugeMetricFamily(f"hotpolicy_{name}", text, labels=labels), samples)


def _filled(family: Any, samples: Samples) -> Metric:
    for labels, value in samples:
        family.add_metric((labels,) if isinstance(labels, str) else labels, value)
    return family
