"""`hotpolicy WORDS` in a fork of a process that has imported everything: at once, for scripts that kill."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from hotpolicy.launch import cli, tuning  # noqa: F401 - tuning: before the fork, for all of them

PIPE = 1 << 20  # bytes of a log that wait for the end
Line = tuple[float, str]  # when it was read, s, and what it says


class Forked:
    """Its lines on stdout come with the time; stderr is read when it has ended. The caller has one thread only."""

    def __init__(self, *words: object, before: Callable[[], object] = bool):
        """`before` is called in the fork."""
        self.lines: list[Line] = []
        self.code: int | None = None
        self.said = ""  # on stderr
        self._rest = b""
        out, err = os.pipe(), os.pipe()
        fcntl.fcntl(err[1], fcntl.F_SETPIPE_SZ, PIPE)
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _be([str(word) for word in words], out[1], err[1], before)
        os.close(out[1])
        os.close(err[1])
        self._out, self._err = out[0], err[0]

    def until(self, wanted: Callable[[str], bool] | None = None, timeout_s: float = 60.0) -> bool:
        """Read on until such a line (True), the end, or `timeout_s`."""
        end = time.monotonic() + timeout_s
        while (left := end - time.monotonic()) > 0 and select.select([self._out], [], [], left)[0]:
            block = os.read(self._out, 65536)
            if not block:
                return False
            now = time.monotonic()
            *whole, self._rest = (self._rest + block).split(b"\n")
            fresh = [line.decode() for line in whole]
            self.lines += [(now, line) for line in fresh]
            if wanted is not None and any(wanted(line) for line in fresh):
                return True
        return False

    def event(self, *kinds: str, timeout_s: float = 60.0) -> bool:
        """Read on until an event of this kind; of a command with --json."""
        return self.until(lambda line: json.loads(line)["event"] in kinds, timeout_s)

    def events(self, kind: str) -> list[tuple[float, dict[str, Any]]]:
        found = [(at, json.loads(line)) for at, line in self.lines]
        return [(at, event) for at, event in found if event["event"] == kind]

    def kill(self) -> float:
        """SIGKILL; the time of it."""
        at = time.monotonic()
        os.kill(self.pid, signal.SIGKILL)
        self.wait()
        return at

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGTERM)
        self.wait()

    def wait(self, timeout_s: float = 60.0) -> int:
        """Its exit code, or less than 0 the signal that ended it."""
        if self.code is None:
            self.until(timeout_s=timeout_s)
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            with os.fdopen(self._err, "rb") as err:
                self.said = err.read().decode(errors="replace").strip()
            os.close(self._out)
        return self.code

    @property
    def last_words(self) -> str:
        return self.said.splitlines()[-1] if self.said else ""


def end_with_parent() -> None:
    """In a fork: a script that ends leaves nothing running, however it does."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _be(words: list[str], out: int, err: int, before: Callable[[], object]) -> None:
    code = 1
    try:
        end_with_parent()
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        sys.argv = ["hotpolicy", *words]
        before()
        cli.main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - as the interpreter would have done
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
