"""The dialects a server is spoken to in. All of them reach the same desk, the same versions and the same scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from hotpolicy.runtime.serving.router import Router
from hotpolicy.runtime.wire import Buffer


class Front(Protocol):
    """A dialect on a ROUTER socket of its own, which one thread at a time reads (see reception.py)."""

    router: Router

    def handle(self, peer: bytes, frames: Sequence[Buffer]) -> None: ...  # never raises, never waits
