"""What holds for all tests: slow files come first, so that no worker ends up alone with one that was started last; and
an example of Hypothesis may take its time, since other workers and their servers are busy beside it."""

from __future__ import annotations

import signal

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("beside", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("beside")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it runs in the background: children
    signal.signal(signal.SIGINT, signal.default_int_handler)  # would not hear of Ctrl-C either


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)  # a stable sort: files stay whole, tests in their order
