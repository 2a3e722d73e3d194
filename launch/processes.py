"""Child processes of a run: started with a line that says they are ready, ended politely, their last words kept."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from hotpolicy.runtime.clock import Deadline
from hotpolicy.runtime.errors import ConfigError

PATIENCE_S = 5.0  # from SIGTERM to SIGKILL


class Child:
    """`hotpolicy VERB ...` in a process of its own; its log goes to `log`.

    Lines it prints are kept in `lines`. Use as a context manager, or call `stop`.
    """

    def __init__(self, name: str, arguments: Sequence[str], log: Path, attached: bool = False):
        """`attached`: its standard input is a pipe that ends with this process, however that does."""
        self.name, self.log = name, log
        self.lines: list[str] = []
        self._news = threading.Condition()
        command = [sys.executable, "-m", "hotpolicy.launch.cli", *arguments]
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if attached else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._reader = threading.Thread(target=self._read, name=f"{name}-output", daemon=True)
        self._reader.start()

    def wait_ready(self, timeout_s: float = 60.0) -> str:
        """The line that begins with "ready". Raises ConfigError with the child's last words when it ends first."""
        deadline = Deadline.after(timeout_s)
        with self._news:
            while True:
                for line in self.lines:
                    if line.startswith(("ready", '{"ready"')):
                        return line
                if self.process.poll() is not None and not self._reader.is_alive():
                    raise ConfigError(f"{self.name} ended before it was ready: {self.last_words()}")
                if deadline.passed():
                    raise ConfigError(f"{self.name} was not ready after {timeout_s:.0f} s; see {self.log}")
                self._news.wait(0.1)

    def next_line(self, after: int, timeout_s: float) -> str | None:
        """Line number `after`; None when the child ended without it or `timeout_s` passed."""
        deadline = Deadline.after(timeout_s)
        with self._news:
            while len(self.lines) <= after:
                if not self._reader.is_alive() or deadline.passed():
                    return None
                self._news.wait(0.1)
            return self.lines[after]

    @property
    def ended(self) -> bool:
        """It is over, and `lines` has all it said."""
        return self.process.poll() is not None and not self._reader.is_alive()

    def wait(self, timeout_s: float | None = None) -> int:
        """Its exit code. Raises ConfigError when it is still running after `timeout_s`."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise ConfigError(f"{self.name} still runs after {timeout_s} s; see {self.log}") from error
        self._reader.join()
        return code

    def last_words(self) -> str:
        text = self.log.read_text(errors="replace").strip().splitlines()
        return text[-1] if text else f"exit code {self.process.poll()}, no message"

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for one that does not listen."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()
