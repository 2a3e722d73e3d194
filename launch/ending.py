"""How a long run is asked to end: by SIGTERM, or by the end of whoever started it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

TERMINATED = 128 + signal.SIGTERM  # exit code, as a shell reports it
ORPHAN_S = 10.0  # from the end of whoever started this to its own


def end_on_sigterm() -> threading.Event:
    """Set by the first SIGTERM; a second one ends the process at once. An exception thrown out of a signal handler
    would be lost whenever the signal met a callback, so the run looks at this between steps instead."""
    asked = threading.Event()

    def ask(number: int, frame: object) -> None:
        asked.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, ask)
    return asked


def end_with_parent() -> None:
    """Standard input is a pipe from whoever started this process, who may be killed and could not end it then: as if
    SIGTERM had come, and where that does not help, at once. Nothing that matters is lost either way."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHAN_S)
        os._exit(TERMINATED)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
