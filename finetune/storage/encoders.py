"""Video encoding in a process of its own, so that the robot's loop shares neither its interpreter nor its priority.

The process is a plain child (no fork of a process that has threads), lives as long as its recorder, and is started
again when it died: that costs the episode in progress. It takes frames from shared memory, see `slots.py`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any, Protocol

from hotpolicy.finetune.storage.slots import Shape, Slots

NICE = 5  # below the loop, and still a fair share beside a policy that keeps every core busy
PROGRAM = """
import signal
for one in signal.SIGINT, signal.SIGTERM:  # meant for the recorder, which has an episode to save
    signal.signal(one, signal.SIG_IGN)
import sys
from hotpolicy.finetune.storage.encoder import main
main(sys.argv[1])
"""
READY_S = 10.0  # it needs a third of a second, more on a machine that is busy
END_S = 2.0  # from the end of its input to being killed


class Listener(Protocol):
    """Hears what the process says of one camera. Called from the thread that reads it."""

    def hear(self, message: Mapping[str, Any]) -> None: ...

    def lost(self, error: OSError) -> None: ...  # the process is over


class EncoderProcess:
    """Starting does not wait (`wait_ready` does): until the process is ready, frames wait in its slots."""

    def __init__(self, shapes: Mapping[str, Shape], room: float, nice: int = NICE):
        """`shapes` of each camera's frames, by column; `room`: bytes of frames of each that may wait in memory.
        Raises OSError when there is no memory, or no process can be started."""
        file, self.slots = Slots.create(shapes, room)
        self._listeners: dict[str, Listener] = {}
        self._lock = threading.Lock()
        self._why = ""  # we ended it
        self._ready = threading.Event()  # or over
        setting = {"file": file, "slots": self.slots.to_dict(), "parent": os.getpid(), "nice": nice}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, json.dumps(setting)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, pass_fds=[file],
                # SVT-AV1 tells its settings for every video: errors only, unless somebody asks
                env={"SVT_LOG": "1", **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )  # fmt: skip
        finally:
            os.close(file)
        self._reader = threading.Thread(target=self._read, name="encoder-answers", daemon=True)
        self._reader.start()

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Return once it takes frames at once, or is over, or `timeout_s` has passed."""
        self._ready.wait(timeout_s)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def over(self) -> str | None:
        """How it ended, for people; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        if self._why:
            return self._why
        return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"

    def listen(self, column: str, listener: Listener | None) -> None:
        """From now on what it says of that camera is for this listener (None: for nobody)."""
        with self._lock:
            self._listeners.pop(column, None)
            if listener is not None:
                self._listeners[column] = listener
        if listener is not None and not self._reader.is_alive():
            listener.lost(self._error())

    def say(self, **message: Any) -> None:
        """One line, see `encoder.py`. A process that is over hears nothing; listeners are told."""
        with self._lock:
            try:
                assert self._process.stdin is not None
                self._process.stdin.write(json.dumps(message).encode() + b"\n")
            except (BrokenPipeError, ValueError):  # ValueError: the pipe is closed
                pass

    def kill(self, why: str) -> None:
        """It is of no use any more."""
        self._why = self._why or why
        self._process.kill()

    def close(self) -> None:
        """End it and wait for that."""
        self._why = self._why or "closed"
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            held = b""
            while read := answers.read(65536):
                *whole, held = (held + read).split(b"\n")
                for line in whole:
                    message = json.loads(line)
                    if "ready" in message:
                        self._ready.set()
                    with self._lock:
                        listener = self._listeners.get(next(iter(message.values())))
                    if listener is not None:
                        listener.hear(message)
        self._process.wait()
        self._ready.set()
        with self._lock:
            left, self._listeners = list(self._listeners.values()), {}
        for listener in left:
            listener.lost(self._error())

    def _error(self) -> OSError:
        return ChildProcessError(f"the encoder process is over: {self.over}")
