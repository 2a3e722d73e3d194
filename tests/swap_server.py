"""A policy server process for tests that kill it: `python swap_server.py STORE ENDPOINT [MOMENT]`.

With a MOMENT it kills itself, by SIGKILL, when a swap reaches it.
"""

from __future__ import annotations

import os
import signal
import sys

from hotpolicy.runtime import durable
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.server import PolicyServer
from hotpolicy.runtime.serving.control import Control
from hotpolicy.runtime.slot import Slot
from hotpolicy.runtime.store import Store
from hotpolicy.runtime.versions import loader
from hotpolicy.runtime.versions.held import Held
from hotpolicy.runtime.versions.history import History
from hotpolicy.runtime.versions.loader import load_with

# moment -> (where, name) of the function at whose call the process dies
MOMENTS = {
    "loading": (loader.Loader, "_load_chain"),
    "verifying": (loader, "ask"),
    "comparing": (loader, "compare"),
    "staged": (Held, "candidate"),
    "pointer": (durable, "replace_file"),
    "pointer written": (durable.os, "replace"),
    "history": (History, "append"),
    "flip": (Slot, "_flip"),
}


def die(*args: object, **kwargs: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(root: str, endpoint: str, moment: str = "") -> None:
    store = Store(root)
    slot = Slot(store, load_with("echo"))
    if moment:
        where, name = MOMENTS[moment]
        getattr(where, name)  # still there? A name that nobody calls would kill nothing
        setattr(where, name, die)
    PolicyServer(ServeConfig(endpoint=endpoint), slot, Control(slot, store)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
