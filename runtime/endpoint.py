"""Where a server may be reached: which endpoints are allowed, and that only one server holds each."""

from __future__ import annotations

import errno
import ipaddress
from pathlib import Path

import zmq
from filelock import FileLock, Timeout

from hotpolicy.runtime.errors import ConfigError

_NOT_OURS = (errno.ENODEV, errno.EADDRNOTAVAIL, errno.EINVAL)
IPC_LENGTH = 100  # bytes in a unix socket's path; the kernel's own limit is 107 and counts a final zero


# How the keys are made that let other computers in.
MAKE_KEYS = (
    "`hotpolicy keys new --server DIR` here and `hotpolicy keys new --client NAME` there, then serve with --keys DIR"
)


def check(field: str, endpoint: str, keys: bool = False) -> str:
    """The endpoint as it is to be bound. Raises ConfigError unless it is ipc or a loopback address, or there are keys.

    `keys`: whether the socket is locked (CURVE). One that is not lets in whoever can reach it.
    """
    scheme, separator, rest = endpoint.partition("://")
    if not separator or scheme not in ("tcp", "ipc") or not rest:
        raise ConfigError(f"{field}: expected tcp://127.0.0.1:PORT or ipc://PATH, got {endpoint!r}")
    if scheme == "ipc":
        if len(rest.encode()) > IPC_LENGTH:
            raise ConfigError(f"{field}: expected an ipc path of at most {IPC_LENGTH} bytes, got {len(rest.encode())}")
        return endpoint
    host, _, port = rest.rpartition(":")
    if not host or not (port == "*" or (port.isascii() and port.isdigit() and int(port) < 65536)):
        raise ConfigError(f"{field}: expected an address and a port from 0 to 65535, got {endpoint!r}")
    host = "127.0.0.1" if host == "localhost" else host
    if not keys and not _is_loopback(host):
        raise ConfigError(
            f"{field}: expected a loopback address or ipc, because there are no keys; got {endpoint!r}. "
            f"To serve other computers make keys: {MAKE_KEYS}"
        )
    return f"tcp://{host}:{'*' if port == '0' else port}"


def _is_loopback(host: str) -> bool:
    """Of an address. A name may lead anywhere, and an interface's too."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


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
        hint = "; expected an address or interface of this computer" if error.errno in _NOT_OURS else ""
        raise ConfigError(f"{field}: cannot bind {endpoint}: {error.strerror}{hint}") from error
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
