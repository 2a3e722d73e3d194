"""The emergency stop around an arm: a socket that any program of this user can pull, and the watch that answers it.

What stops the arm is `limits.LimitedArm.stop`, in the thread that was told to: it does not wait for the control loop.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import msgpack
import zmq

from hotpolicy.robots.latch import FileLatch, plain
from hotpolicy.robots.limits import LimitedArm
from hotpolicy.runtime.errors import ConfigError, RobotError, StopUnconfirmed

__all__ = ["FileLatch", "Sentry", "ask_stop", "stop_endpoint"]  # with what keeps a stop

log = logging.getLogger(__name__)

LOOK_MS = 50  # between two looks at the watchdog
LONGEST = 1024  # bytes of a request
ANSWER_S = 5.0  # a stop takes milliseconds; a bus that does not answer takes all its repetitions


class Sentry:
    """Stops `arm` when `ask_stop` is called with the same robot's name, by any program of this user; and, with
    `watch`, is its watchdog even while the control loop is stuck. A context manager with a thread of its own."""

    def __init__(self, arm: LimitedArm, robot: str, watch: bool = True):
        self._arm, self._watch = arm, watch
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REP)
        self._socket.setsockopt(zmq.MAXMSGSIZE, LONGEST)
        self._socket.setsockopt(zmq.LINGER, 1000)
        try:
            self._socket.bind(stop_endpoint(robot))
        except zmq.ZMQError as error:
            self._socket.close()
            raise ConfigError(f"stop: the socket {stop_endpoint(robot)} cannot be opened: {error}") from error
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._stand, name="sentry", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._end.set()
        self._thread.join()

    def __enter__(self) -> Sentry:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _stand(self) -> None:
        try:
            while not self._end.is_set():
                if self._socket.poll(LOOK_MS):
                    self._socket.send(msgpack.packb(self._answer(self._socket.recv())))
                if self._watch:
                    with suppress(RobotError):  # the loop meets the same error, and is the one to report it
                        self._arm.watchdog()
        finally:
            self._socket.close()

    def _answer(self, request: bytes) -> dict[str, object]:
        """Whatever the bytes say, they ask for a stop: this is no moment to be strict."""
        try:
            reason = str(msgpack.unpackb(request)["reason"])[:200]
        except (ValueError, TypeError, KeyError, msgpack.exceptions.UnpackException):
            reason = "asked for on the stop socket"
        try:
            self._arm.stop(reason)
        except RobotError as error:
            log.critical("%s", error)
            return {"confirmed": False, "text": str(error)}
        log.warning("emergency stop: %s; torque is off", reason)
        return {"confirmed": True, "text": "torque is off"}


def ask_stop(robot: str, reason: str, timeout_s: float = ANSWER_S) -> bool:
    """Stop the robot of that name in whatever program drives it. True: its torque was read back as off. False: no
    program drives it. Raises StopUnconfirmed when torque may still be on."""
    endpoint = stop_endpoint(robot)
    if not Path(endpoint.removeprefix("ipc://")).exists():
        return False
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
    socket.setsockopt(zmq.LINGER, 0)
    try:
        socket.connect(endpoint)
        socket.send(msgpack.packb({"reason": reason}))
        if not socket.poll(round(timeout_s * 1000)):
            return False  # left behind by a program that was killed
        answer = msgpack.unpackb(socket.recv())
    finally:
        socket.close()
    if not answer["confirmed"]:
        raise StopUnconfirmed(answer["text"])
    return True


def stop_endpoint(robot: str) -> str:
    """Where the program that drives this robot listens: in a folder that only this user may enter."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    user = os.getuid()
    folder = Path(base) / "hotpolicy" if base else Path(tempfile.gettempdir()) / f"hotpolicy-{user}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != user or folder.stat().st_mode & 0o077:
        raise ConfigError(f"stop: expected {folder} to be this user's alone (chmod 700), it is open to others")
    return f"ipc://{folder}/stop-{plain(robot)}"
