"""A serial port that belongs to one program and fails in one way. Knows no protocol."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import tempfile
from contextlib import suppress
from errno import EACCES, EAGAIN, EBUSY, EIO, ENOENT, EPERM
from pathlib import Path

import serial
from filelock import FileLock, Timeout

from hotpolicy.robots.servo.ports import candidates, holders, stable_name
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import BusBusy, BusLost

try:
    from select import POLLIN, poll
    from termios import TCIFLUSH, tcflush
    from termios import error as TerminalError
except ImportError:  # not a POSIX system

    class TerminalError(Exception):  # type: ignore[no-redef]
        pass


# Everything pyserial lets through when a device goes away; termios.error is not an OSError.
TROUBLE = (serial.SerialException, OSError, TerminalError)

log = logging.getLogger(__name__)

DIRECT = sys.platform == "linux"  # read and write the descriptor itself: pyserial asks three times as much of a core
WRITE_TIMEOUT_S = 1.0
FULL = "the port takes no more bytes"
TIMEOUT_STEP_S = 5e-4  # smaller changes of pyserial's read timeout are not worth the system calls they cost


class Port:
    """`name` is a device, best by its stable name (/dev/serial/by-id/...), or a pyserial URL (socket://host:port)."""

    def __init__(self, name: str, baud: int):
        self.name = name
        self.baud = baud
        self._stable = name  # once it has been open: the name that finds the same adapter again
        self._serial: serial.Serial | None = None
        self._fd: int | None = None  # its descriptor, where it is used directly
        self._lock: FileLock | None = None

    @property
    def is_open(self) -> bool:
        return self._serial is not None

    def open(self) -> None:
        """Raises BusBusy when another program holds the port, BusLost when it cannot be opened."""
        if self._serial is not None:
            return
        lock = FileLock(lock_file(self._stable), timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout as error:
            raise BusBusy(f"port {self.name}: another hotpolicy program has it open{_by(self._stable)}") from error
        except OSError as error:
            raise BusLost(f"port {self.name}: lock file {lock.lock_file}: {error.strerror}") from error
        self._lock = lock
        try:
            self._serial = _open_serial(self.name, self._stable, self.baud)
        finally:
            if self._serial is None:
                self.close()
        self._stable = stable_name(self._stable)
        if DIRECT and "://" not in self.name:
            self._fd = self._serial.fileno()
            self._poll = poll()
            self._poll.register(self._fd, POLLIN)

    def close(self) -> None:
        """Give the port back; never raises, whatever state it is in."""
        if self._serial is not None:
            connection = getattr(self._serial, "_socket", None)
            with suppress(*TROUBLE):
                self._serial.close()
            if connection is not None:  # pyserial leaves it open where the other side has hung up
                connection.close()
            self._serial = self._fd = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def exchange(self, request: bytes, size: int, timeout_s: float) -> bytes:
        """`ask`, then `receive`. Raises BusLost."""
        fd = self._fd
        if fd is None:
            self.ask(request)
            return self.receive(size, timeout_s)
        try:  # one call for what every cycle does: half of a cycle's processor time is not the system's but ours
            tcflush(fd, TCIFLUSH)
            if os.write(fd, request) != len(request):
                raise OSError(EIO, FULL)
            return self._read(fd, size, timeout_s)
        except TROUBLE as error:
            raise self._lost(error) from error

    def ask(self, data: bytes) -> None:
        """Throw away input that nobody asked for, then write. Raises BusLost."""
        port, fd = self._serial, self._fd
        if port is None:
            raise BusLost(f"port {self.name}: not open")
        try:
            if fd is None:
                port.reset_input_buffer()
            else:
                tcflush(fd, TCIFLUSH)
        except TROUBLE as error:
            raise self._lost(error) from error
        self.tell(data)

    def tell(self, data: bytes) -> None:
        """Write what nobody answers. Raises BusLost."""
        port, fd = self._serial, self._fd
        if port is None:
            raise BusLost(f"port {self.name}: not open")
        try:
            if fd is None:
                port.write(data)
            elif os.write(fd, data) != len(data):
                raise OSError(EIO, FULL)
        except TROUBLE as error:
            raise self._lost(error) from error

    def receive(self, size: int, timeout_s: float) -> bytes:
        """`size` bytes, or those there are after `timeout_s`. Raises BusLost."""
        port, fd = self._serial, self._fd
        if port is None:
            raise BusLost(f"port {self.name}: not open")
        try:
            if fd is not None:
                return self._read(fd, size, timeout_s)
            if port.timeout is None or abs(port.timeout - timeout_s) > TIMEOUT_STEP_S:
                port.timeout = timeout_s
            return bytes(port.read(size))
        except TROUBLE as error:
            raise self._lost(error) from error

    def _read(self, fd: int, size: int, timeout_s: float) -> bytes:
        data, until = b"", 0.0
        while self._poll.poll(timeout_s * 1000):
            more = os.read(fd, size - len(data))
            if not more:
                raise OSError(EIO, "the port reports bytes and has none: unplugged, or another program reads it too")
            data += more
            if len(data) == size:
                break
            until = until or now() + timeout_s
            timeout_s = until - now()
            if timeout_s <= 0:
                break
        return data

    def _lost(self, error: Exception) -> BusLost:
        self.close()
        return BusLost(f"port {self.name}: {error}")


def lock_file(name: str) -> Path:
    """One file per device and user, whatever link the device was named by. Other users are kept out by the port's own
    exclusive mode."""
    device = name if "://" in name else os.path.realpath(name)
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"hotpolicy-{user}-{hashlib.sha256(device.encode()).hexdigest()[:16]}.lock"


def _open_serial(name: str, stable: str, baud: int) -> serial.Serial:
    others = _by(stable)
    if others:  # one that did not ask for the port exclusively would steal our answers
        raise BusBusy(f"port {name}: another program has it open{others}")
    exclusive = None if "://" in stable else True
    try:
        port = serial.serial_for_url(
            stable, baudrate=baud, timeout=0.05, write_timeout=WRITE_TIMEOUT_S, exclusive=exclusive
        )
    except (*TROUBLE, ValueError) as error:  # ValueError: a URL that pyserial does not know
        number = error.errno if isinstance(error, OSError) else None
        if number in (EAGAIN, EBUSY):
            raise BusBusy(f"port {name}: another program has it open") from error
        raise BusLost(f"port {name}: {_why(number, error)}") from error
    # FTDI adapters hold bytes back for 16 ms unless told not to; every other kind of port refuses in its own way.
    with suppress(AttributeError, ValueError, NotImplementedError, *TROUBLE):
        port.set_low_latency_mode(True)
    return port


def _by(name: str) -> str:
    found = holders(name)
    return f": {', '.join(found)}" if found else ""


def _why(number: int | None, error: Exception) -> str:
    if number == ENOENT:
        return f"expected a serial port, there is none; found here: {', '.join(candidates()) or 'none'}"
    if number in (EACCES, EPERM):
        return "no permission; add yourself to the group that owns it (often `dialout`) and log in again"
    return f"expected a serial port, {error}"
