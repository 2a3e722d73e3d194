"""A pseudo-terminal that a program opens like any serial port, with a virtual bus behind it.

`VirtualPort` never blocks and has no thread: the process that owns the world watches `port.master` in its own poll loop
and calls `port.pump(bus)` when it is readable. `serve` is a small thread that does just this, for tests.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import threading
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hotpolicy.robots.sim.wire import VirtualWire
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import ConfigError

CHUNK = 4096  # bytes
TCGETS2 = 0x802C542A  # ioctl that knows rates for which termios has no constant
TERMIOS2 = struct.Struct("4I20B2I")  # flags, line and control characters, input and output rate


class VirtualPort:
    """A pty: `master` is our end (non-blocking), `path` what a client opens. `link` is a stable name for it.

    Raises ConfigError when `link` is taken by something that is not a symbolic link.
    """

    def __init__(self, link: Path | None = None):
        self.link = link
        self._lock = threading.RLock()  # a descriptor must not be closed, and its number reused, under a read
        self.master = -1
        self._slave = -1
        self._back_at: float | None = None  # when an unplugged port comes back by itself
        self._open()

    def _open(self) -> None:
        self.master, self._slave = os.openpty()
        # The slave stays open here: otherwise the master reads EIO whenever no client has the port open. Raw before
        # anyone opens it: otherwise the terminal echoes and translates the first bytes.
        tty.setraw(self._slave)
        os.set_blocking(self.master, False)
        self.device = os.ttyname(self._slave)
        if self.link is not None:
            try:
                _point(self.link, self.device)
            except ConfigError:
                self.unplug()
                raise

    @property
    def path(self) -> str:
        """What a client opens: the link if there is one."""
        return str(self.link) if self.link is not None else self.device

    def read(self) -> bytes:
        """What the client has written; empty when nothing, and after `unplug`."""
        with self._lock:
            if self.master < 0:
                return b""
            try:
                return os.read(self.master, CHUNK)
            except BlockingIOError:
                return b""

    def write(self, data: bytes) -> int:
        """Bytes taken. A client that does not read loses the rest, as it would on a wire."""
        with self._lock:
            if self.master < 0 or not data:
                return 0
            try:
                return os.write(self.master, data)
            except BlockingIOError:
                return 0

    def pump(self, bus: VirtualWire[Any, Any]) -> None:
        """Carry what is there from the client to the bus and back. Call when `master` is readable, at `bus.next_due`
        when answers are late, and now and then while the port is unplugged."""
        if self._back_at is not None and now() >= self._back_at:
            self.replug()
        data = self.read()
        if data and (fault := bus.active("unplug", 0)):
            self.unplug()
            self._back_at = now() + fault.delay_s if fault.delay_s else None
            return
        self.write(bus.feed(data, self.rate() if bus.strict_baud else None) if data else bus.due())

    def rate(self) -> int:
        """What the client has opened the port at, bit/s. Linux only; it says nothing of what the pty does."""
        settings = fcntl.ioctl(self._slave, TCGETS2, bytes(TERMIOS2.size))
        return int(TERMIOS2.unpack(settings)[-1])

    def unplug(self) -> None:
        """The device is gone: an open client gets an I/O error, the link stays and leads nowhere."""
        with self._lock:
            for fd in (self.master, self._slave):
                if fd >= 0:
                    os.close(fd)
            self.master = self._slave = -1
            self._back_at = None

    def replug(self) -> None:
        """A new terminal, usually under another device name; the link points to it."""
        with self._lock:
            self.unplug()
            self._open()

    def close(self) -> None:
        self.unplug()
        if self.link is not None and self.link.is_symlink() and os.readlink(self.link) == self.device:
            self.link.unlink()

    def __enter__(self) -> VirtualPort:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _point(link: Path, target: str) -> None:
    if link.exists() and not link.is_symlink():
        raise ConfigError(f"port link {link}: expected a free name or a symbolic link, found a file")
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        os.replace(temporary, link)
    except OSError as error:
        raise ConfigError(f"port link {link}: {error.strerror}") from error


@contextlib.contextmanager
def serve(bus: VirtualWire[Any, Any], port: VirtualPort, step_ticks: float = 0.0) -> Iterator[VirtualPort]:
    """Answer on `port` from a thread until the block ends. With `step_ticks` the servos go that far towards their goals
    after each exchange. The bus may be changed from outside between exchanges: faults, registers, `port.unplug()`."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            if port.master < 0:
                stop.wait(0.005)
                port.pump(bus)
                continue
            wait = 0.01 if bus.next_due is None else min(max(bus.next_due - now(), 0.0), 0.01)
            with contextlib.suppress(OSError, ValueError):  # unplugged while waiting: the next turn sees it
                select.select([port.master], [], [], wait)
            port.pump(bus)
            for servo in bus.servos:
                servo.advance(step_ticks)

    thread = threading.Thread(target=run, name="virtual-bus", daemon=True)
    thread.start()
    try:
        yield port
    finally:
        stop.set()
        thread.join()
        port.close()
