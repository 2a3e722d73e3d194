"""A policy server made from its options, announced when robots may come, and run until it ends."""

from __future__ import annotations

import json
import logging
import os
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hotpolicy.launch import console
from hotpolicy.launch.serving.options import ServeOptions
from hotpolicy.launch.versions import open_store
from hotpolicy.runtime.errors import BundleError, EngineFault, HotpolicyError

if TYPE_CHECKING:
    from hotpolicy.runtime.server import PolicyServer
    from hotpolicy.runtime.store import Store
    from hotpolicy.runtime.versions.loader import Load

log = logging.getLogger(__name__)
SERVER_FAILED = 4  # exit code


def make_server(options: ServeOptions) -> PolicyServer:
    """Load the folder, or the store's last good version. Raises UnknownVersion for an empty store, BundleError,
    ConfigError."""
    from hotpolicy.runtime.server import PolicyServer
    from hotpolicy.runtime.serving.control import Control
    from hotpolicy.runtime.serving.notify import Notifier
    from hotpolicy.runtime.slot import Slot

    notifier = Notifier.from_environment()
    notifier.state("starting", f"loading from {options.store}")
    store = open_store(options.store, onnx=options.engine == "onnx")
    wanted = None if options.folder is None else _begin_with(options.folder, store)
    slot = Slot(store, _load(options), options.checks)
    if wanted not in (None, slot.live.version):
        raise BundleError(f"{options.folder}: version {wanted} cannot be served: the log says why")
    return PolicyServer(options.config, slot, Control(slot, store), notifier)


def _load(options: ServeOptions) -> Load:
    if options.engine == "onnx":
        from hotpolicy.runtime.graphs.onnx_store import OnnxLoad

        return OnnxLoad(**options.own)
    from hotpolicy.runtime.versions.loader import load_with

    if options.engine == "torch":
        from hotpolicy.runtime.engine.torch_place import TorchOptions

        TorchOptions(**options.own)  # a wrong one is not the fault of a version
    return load_with(options.engine, **options.own)


def _begin_with(folder: Path, store: Store) -> str:
    """The version that a folder is, added to the store and live there. Naming a folder is a choice like any swap, and
    is written into the history like one; a restart of `serve` without a folder goes on with what is live then."""
    version = store.add(folder)
    change = next(iter(store.history(1)), None)
    if change is None or change.version != version:
        store.promote(version, by="serve", request_id=f"serve-{uuid.uuid4().hex}")
    return version


def announce(server: PolicyServer, options: ServeOptions, as_json: bool) -> None:
    """One line once robots may come. A warm-up that fails is reported by the main thread, not here."""
    try:
        server.wait_ready(options.config.longest_load_s)
    except HotpolicyError as error:
        log.error("not ready: %s", error)
        return
    version = server.stats()["versions"]["live"]
    facts = {"ready": version, "endpoint": server.endpoint, "control": server.control_endpoint}
    facts |= {"engine": options.engine, "store": str(options.store)}
    text = f"ready: {version} on {server.endpoint}, control {server.control_endpoint}, engine {options.engine}"
    if server.gr00t_endpoint:
        facts["gr00t"] = server.gr00t_endpoint
        text += f", GR00T on {server.gr00t_endpoint}"
    if server.openpi_port:
        facts["openpi"] = server.openpi_port
        text += f", openpi on 127.0.0.1:{server.openpi_port}"
    typer.echo(json.dumps(facts) if as_json else text)


def serve_until_it_ends(server: PolicyServer) -> None:
    """Ends the process with exit code 4 when the server failed, even where a thread of it is stuck for good."""
    try:
        server.run()
    except EngineFault as error:
        console.complain(str(error))
        if server.stuck:
            logging.shutdown()
            os._exit(SERVER_FAILED)
        sys.exit(SERVER_FAILED)
