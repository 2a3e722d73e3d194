"""What Prometheus reads of a real server over HTTP, parsed by its own parser."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from hotpolicy.runtime.client import ControlClient, PolicyClient
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.engine.echo_engine import SPEC, EchoPolicy, seal_echo
from hotpolicy.runtime.errors import BadRequest, SwapRefused
from hotpolicy.runtime.messages import Observation
from hotpolicy.runtime.metrics import ACTIVE_S, MOST_SESSIONS, Sessions
from hotpolicy.runtime.server import PolicyServer
from hotpolicy.runtime.serving.control import Control
from hotpolicy.runtime.slot import Slot
from hotpolicy.runtime.store import Store
from hotpolicy.runtime.versions.golden import Golden

Scraped = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Site:
    def __init__(self, folder: Path):
        store = Store(folder / "store")
        base = seal_echo(folder / "made", 0, golden=Golden.blank(SPEC, 8, 2))
        self.base = store.add(base.folder)
        self.next = store.add(seal_echo(folder / "made", 1, parent=base).folder)
        self.wild = store.add(seal_echo(folder / "made", 1e9, parent=base).folder)
        slot = Slot(store, EchoPolicy.load)
        config = ServeConfig(endpoint="tcp://127.0.0.1:0", metrics_port=0, drain_s=0.2)
        self.server = PolicyServer(config, slot, Control(slot, store))
        self.server.start()
        self.server.wait_ready(10)

    def scrape(self) -> Scraped:
        """Every sample by its name and labels."""
        assert self.server._exposition is not None
        with urllib.request.urlopen(f"http://127.0.0.1:{self.server._exposition.port}/metrics", timeout=5) as reply:
            text = reply.read().decode()
        families = list(text_string_to_metric_families(text))
        assert all(family.documentation and family.type in ("counter", "gauge") for family in families)
        samples = [sample for family in families for sample in family.samples]
        found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
        assert len(found) == len(samples), "no sample twice"
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.server.stop()


def of(scraped: Scraped, name: str, **labels: str) -> float:
    return scraped["hotpolicy_" + name, frozenset(labels.items())]


def test_a_scrape_tells_of_requests_versions_swaps_and_the_process(site: Site) -> None:
    before = site.scrape()
    image = np.zeros((64, 64, 3), np.uint8)
    seen = Observation({"front": image}, np.zeros(6, np.float32), "")
    with (
        PolicyClient(site.server.endpoint, timeout_s=5) as client,
        ControlClient(site.server.control_endpoint) as operator,
    ):
        for _ in range(5):
            client.infer(seen)
        with pytest.raises(BadRequest):
            client.infer(Observation({}, seen.state, ""))
        operator.swap(site.next)
        with pytest.raises(SwapRefused):
            operator.swap(site.wild)
        client.infer(seen)
        operator.rollback()
        client.infer(seen)
        scraped = site.scrape()
    assert of(scraped, "requests_total", outcome="answered") == 7
    assert of(scraped, "requests_total", outcome="bad_request") == 1
    assert {labels for name, labels in scraped if name == "hotpolicy_dropped_total"} == {
        frozenset({("reason", reason)}) for reason in ("expired", "superseded", "busy", "draining", "unsent")
    }
    for phase in ("queue", "infer", "total"):
        p50, p99 = (of(scraped, "latency_ms", phase=phase, quantile=name) for name in ("p50", "p99"))
        assert 0 <= p50 <= p99 <= of(scraped, "latency_ms", phase=phase, quantile="max")
    assert (of(scraped, "waiting"), of(scraped, "sessions"), of(before, "sessions")) == (0, 1, 0)
    assert of(scraped, "version_info", role="live", version=site.base) == 1
    assert of(scraped, "version_info", role="previous", version=site.next) == 1
    assert (of(scraped, "swaps_total"), of(scraped, "swaps_refused_total")) == (1, 1)
    rollbacks = {cause: of(scraped, "rollbacks_total", cause=cause) for cause in ("command", "faults", "latency")}
    assert rollbacks == {"command": 1, "faults": 0, "latency": 0}
    assert all(of(scraped, "swap_duration_ms", phase=phase) > 0 for phase in ("load", "verify", "promote"))
    assert of(scraped, "state", state="ready") == 1
    assert of(scraped, "state", state="failed") == 0
    assert of(scraped, "engine_restarts_total") == 0
    assert of(scraped, "resident_memory_bytes") > 20e6
    assert of(scraped, "uptime_seconds") >= of(before, "uptime_seconds")
    assert of(scraped, "live_version_seconds") < of(scraped, "uptime_seconds") + 60


def test_sessions_are_those_heard_of_lately() -> None:
    sessions = Sessions()
    for n in range(3):
        sessions.heard(n, at=float(n))
    sessions.heard(0, at=5.0)
    sessions.left(2)
    assert sessions.active(6.0) == 2
    assert sessions.active(1.0 + ACTIVE_S + 0.1) == 1
    assert sessions.active(100.0) == 0
    for n in range(MOST_SESSIONS + 100):
        sessions.heard(n, at=200.0)
    assert sessions.active(200.0) == MOST_SESSIONS
