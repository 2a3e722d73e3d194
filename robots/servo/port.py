"""A serial port that belongs to one program and fails in one way. Knows no protocol."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EAGAIN, EBUSY, ENOENT, EPERM
from pathlib import Path

import serial
from filelock import FileLock, Timeout

from hotpolicy.runtime.errors import BusBusy, BusLost

try:
    from termios import error as TerminalError
except ImportError:  # not a POSIX system: nothing raises this there

    class TerminalError(Exception):  # type: ignore[no-redef]
        pass


# Everything pyserial lets through when a device goes away; termios.error is not an OSError.
TROUBLE = (serial.SerialException, OSError, TerminalError)

log = logging.getLogger(__name__)

WRITE_TIMEOUT_S = 1.0
TIMEOUT_STEP_S = 5e-4  # smaller changes of the read timeout are not worth the system calls they cost


class Port:
    """`name` is a device, best by its stable name (/dev/serial/by-id/...), or a pyserial URL (socket://host:port)."""

    def __init__(self, name: str, baud: int):
        self.name = name
        self.baud = baud
        self._serial: serial.Serial | None = None
        self._lock = FileLock(lock_file(name), timeout=0, thread_local=False)

    @property
    def is_open(self) -> bool:
        return self._serial is not None

    def open(self) -> None:
        """Raises BusBusy when another program holds the port, BusLost when it cannot be opened."""
        if self._serial is not None:
            return
        try:
            self._lock.acquire()
        except Timeout as error:
            raise BusBusy(f"port {self.name}: another hotpolicy program has it open") from error
        except OSError as error:
            raise BusLost(f"port {self.name}: lock file {self._lock.lock_file}: {error.strerror}") from error
        try:
            self._serial = _open_serial(self.name, self.baud)
        finally:
            if self._serial is None:
                self._lock.release()

    def close(self) -> None:
        """Give the port back; never raises, whatever state it is in."""
        if self._serial is not None:
            with suppress(*TROUBLE):
                self._serial.close()
            self._serial = None
        self._lock.release()

    def send(self, data: bytes) -> None:
        """Throw away input that nobody asked for, then write. Raises BusLost."""
        with self._io() as port:
            port.reset_input_buffer()
            port.write(data)

    def receive(self, size: int, timeout_s: float) -> bytes:
        """`size` bytes, or those there are after `timeout_s`. Raises BusLost."""
        with self._io() as port:
            if port.timeout is None or abs(port.timeout - timeout_s) > TIMEOUT_STEP_S:
                port.timeout = timeout_s
            return bytes(port.read(size))

    @contextmanager
    def _io(self) -> Iterator[serial.Serial]:
        if self._serial is None:
            raise BusLost(f"port {self.name}: not open")
        try:
            yield self._serial
        except TROUBLE as error:
            self.close()
            raise BusLost(f"port {self.name}: {error}") from error


def lock_file(name: str) -> Path:
    """One file per device and user, whatever link the device was named by. Other users are kept out by the port's own
    exclusive mode."""
    device = name if "://" in name else os.path.realpath(name)
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"hotpolicy-{user}-{hashlib.sha256(device.encode()).hexdigest()[:16]}.lock"


def candidates() -> list[str]:
    """Serial ports of this machine by their stable names, else by the usual device names."""
    stable = sorted(map(str, Path("/dev/serial/by-id").glob("*")))
    return stable or sorted(str(path) for kind in ("ttyACM*", "ttyUSB*") for path in Path("/dev").glob(kind))


def _open_serial(name: str, baud: int) -> serial.Serial:
    try:
        port = serial.serial_for_url(
            name, baudrate=baud, timeout=0.05, write_timeout=WRITE_TIMEOUT_S, exclusive=None if "://" in name else True
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


def _why(number: int | None, error: Exception) -> str:
    if number == ENOENT:
        return f"expected a serial port, there is none; found here: {', '.join(candidates()) or 'none'}"
    if number in (EACCES, EPERM):
        return "no permission; add yourself to the group that owns it (often `dialout`) and log in again"
    return f"expected a serial port, {error}"
