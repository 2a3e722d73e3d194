"""Where a server may be reached: which endpoints are allowed, and that only one server holds each."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import zmq
from filelock import FileLock, Timeout

from hotpolicy.runtime.errors import ConfigError

IPC_LENGTH = 100  # bytes in a unix socket's path; the kernel's own limit is 107 and counts a final zero


def check(field: str, endpoint: str) -> str:
    """The endpoint as it is to be bound. Raises ConfigError unless it is ipc or a loopback address."""
    scheme, separator, rest = endpoint.partition("://")
    if not separator or scheme not in ("tcp", "ipc") or not rest:
        raise ConfigError(f"{field}: expected tcp://127.0.0.1:PORT or ipc://PATH, got {endpoint!r}")
    if scheme == "ipc":
        if len(rest.encode()) > IPC_LENGTH:
            raise ConfigError(f"{field}: expected an ipc path of at most {IPC_LENGTH} bytes, got {len(rest.encode())}")
        return endpoint
    host, _, port = rest.rpartition(":")
    if not (port == "*" or (port.isascii() and port.isdigit() and int(port) < 65536)):
        raise ConfigError(f"{field}: expected a port from 0 to 65535, got {endpoint!r}")
    host = "127.0.0.1" if host == "localhost" else host
    try:
        loopback = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ConfigError(
            f"{field}: expected a loopback address or ipc, because nothing is encrypted; got {endpoint!r}"
        )
    return f"tcp://{host}:{'*' if port == '0' else port}"


def beside(endpoint: str) -> str:
    """The control endpoint that goes with a data endpoint: the next port, or the same path with `.control`."""
    if endpoint.startswith("ipc://"):
        return f"{endpoint}.control"
    address, _, port = endpoint.rpartition(":")
    return f"{address}:{port if port in ('0', '*') else int(port) + 1}"


def bind(socket: zmq.Socket[bytes], field: str, endpoint: str) -> FileLock | None:
    """Bind to a checked endpoint. For ipc, returns the lock that holds it: release it after the socket is closed.

    libzmq lets a second server take an ipc path from the first without a word, and leaves the path behind when a
    server is killed. The kernel drops a file lock with its process, so the lock tells the living from the dead.
    Raises ConfigError when another server is there or the endpoint cannot be bound.
    """
    lock = _lock(field, endpoint) if endpoint.startswith("ipc://") and not endpoint.startswith("ipc://@") else None
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        if lock:
            lock.release()
        if error.errno == zmq.EADDRINUSE:
            raise ConfigError(f"{field}: {endpoint} is taken by another server; stop it or choose another") from error
        raise ConfigError(f"{field}: cannot bind {endpoint}: {error.strerror}") from error
    return lock


def _lock(field: str, endpoint: str) -> FileLock:
    path = Path(endpoint.removeprefix("ipc://"))
    if not path.parent.is_dir():
        raise ConfigError(f"{field}: expected a path in a folder that exists, got {endpoint!r}")
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(f"{field}: {endpoint} is taken by another server; stop it or choose another") from error
    except OSError as error:
        raise ConfigError(f"{field}: cannot lock {path}.lock: {error.strerror}") from error
    return lock
