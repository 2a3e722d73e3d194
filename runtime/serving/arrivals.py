"""Over which connections something came since the last look.

The kernel counts no bytes of a unix socket. But an edge-triggered epoll that nobody waits in remembers that a
connection was woken up, though what came is read by now: it could be written to, so there is something to report. It
also remembers that the peer has read what we sent, which is no more than one arrival for each reply.
"""

from __future__ import annotations

import contextlib
import select

MOST = 4096  # told of at once


class Arrivals:
    """For one thread. Where there is no epoll (not Linux) nothing is ever told."""

    def __init__(self) -> None:
        self._epoll = select.epoll() if hasattr(select, "epoll") else None

    def watch(self, descriptor: int) -> None:
        """Until it is closed, by whomever."""
        if self._epoll:
            with contextlib.suppress(OSError):  # closed already, or watched
                self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)

    def since(self) -> set[int]:
        """Descriptors, since this was called last."""
        return {descriptor for descriptor, _ in self._epoll.poll(0, MOST)} if self._epoll else set()

    def close(self) -> None:
        if self._epoll:
            self._epoll.close()
