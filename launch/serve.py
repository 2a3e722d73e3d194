"""`hotpolicy serve`: a folder or a store, an engine and two sockets become a policy server in the foreground."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hotpolicy.launch import console
from hotpolicy.launch.fields import Fields
from hotpolicy.launch.fronts import front_settings, read_sections
from hotpolicy.launch.options import STORE
from hotpolicy.launch.versions import open_store, shipped
from hotpolicy.runtime.errors import BundleError, ConfigError, EngineFault, HotpolicyError

if TYPE_CHECKING:
    from hotpolicy.runtime.config import ServeConfig
    from hotpolicy.runtime.server import PolicyServer
    from hotpolicy.runtime.store import Store
    from hotpolicy.runtime.versions.checks import Checks
    from hotpolicy.runtime.versions.loader import Load

log = logging.getLogger(__name__)
SERVER_FAILED = 4  # exit code
# Option -> the one engine that has it.
OWNERS = {"device": "torch", "dtype": "torch", "provider": "onnx", "cache": "onnx"}


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What `serve` was told, with the file's values below the command line's."""

    store: Path
    engine: str
    own: Mapping[str, Any]  # the engine's options
    config: ServeConfig
    checks: Checks  # of candidates, and of the version that serves
    folder: Path | None = None  # what to begin with; None: the store's live version


def serve(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="What to serve: a folder that `export` wrote (needs no torch), a sealed bundle's, or `nano`. It is "
            "added to the store and made live. Default: the store's live version."
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(envvar="HOTPOLICY_STORE", help=f"Folder that keeps the policy versions. Default: {STORE}."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="What computes: torch, onnx, echo. Default: onnx for an exported folder and where there is no torch."
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="Data socket, tcp (loopback unless there are --keys) or ipc. Default: tcp://127.0.0.1:5555."),
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="Control socket. Default: the next port, or the ipc path with .control.")
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(
            envvar="HOTPOLICY_KEYS",
            help="Folder made by `hotpolicy keys new --server`. The tcp sockets then let in only clients that are "
            "allowed, and may be bound to any address.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Threads of one inference. Default: 1; from 50 M parameters on, one per core."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where torch computes: auto, cpu, cuda. Default: auto, CUDA where there is one.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Precision in torch: auto, fp32, bf16. Default: auto, bf16 where it is fast and was stored."),
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(
            help="Where ONNX Runtime computes: tensorrt, cuda, cpu. Default: cuda where there is one. Exports in int8 "
            "are for the cpu. Only the cpu was ever run."
        ),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            help="Folder for what TensorRT builds, a folder of its own for each version. Default: built at every start."
        ),
    ] = None,
    max_batch: Annotated[int | None, typer.Option(help="Most robots computed together. Default: 4.")] = None,
    batch_window_ms: Annotated[
        float | None, typer.Option(help="Longest a request waits for a fuller batch, ms. Default: 2.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Prometheus metrics on 127.0.0.1 at this port. Default: off.")
    ] = None,
    gr00t: Annotated[
        str | None, typer.Option(help="Socket for GR00T's clients, e.g. tcp://127.0.0.1:5565. Default: off.")
    ] = None,
    gr00t_kill: Annotated[
        bool | None, typer.Option("--gr00t-kill", help="Let GR00T's clients end this server. Default: no.")
    ] = None,
    openpi: Annotated[
        int | None, typer.Option(help="Port on 127.0.0.1 for openpi's websocket clients, e.g. 8000. Default: off.")
    ] = None,
    keymap: Annotated[
        list[str] | None,
        typer.Option(
            help="What those clients call cameras and joints: gr00t_libero, gr00t_so100, openpi_aloha, openpi_droid, "
            "openpi_libero or a .json file; one for each. Default: derived from the robot."
        ),
    ] = None,
    guard: Annotated[
        bool | None,
        typer.Option(
            "--guard/--no-guard",
            help="Roll back by itself a version whose actions or latency turn bad. Default: yes; bounds in the file.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with any of these options, spelled with underscores.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ready line as JSON.")] = False,
) -> None:
    """Serve a policy to robots until SIGTERM or Ctrl-C, then finish what waits.

    Exit codes: 0 asked to stop, 2 cannot start as told, 4 failed while serving (start it again). Under systemd, use
    Type=notify: it is told when the server is ready, and with WatchdogSec= that its threads live.
    """
    given = {
        "folder": folder,
        "store": store,
        "engine": engine,
        "endpoint": endpoint,
        "control": control,
        "keys": keys,
        "threads": threads,
        "device": device,
        "dtype": dtype,
        "max_batch": max_batch,
        "batch_window_ms": batch_window_ms,
        "metrics_port": metrics_port,
        "gr00t": gr00t,
        "gr00t_kill": gr00t_kill,
        "openpi": openpi,
        "keymaps": keymap or None,
        "guard": guard,
    }
    options = serve_options(config, {name: value for name, value in given.items() if value is not None})
    server = make_server(options)
    threading.Thread(target=_announce, args=(server, options, as_json), name="ready-line", daemon=True).start()
    serve_until_it_ends(server)


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


def serve_options(file: Path | None, given: Mapping[str, Any]) -> ServeOptions:
    """The file's values, with those given on the command line over them. Raises ConfigError naming the field."""
    from hotpolicy.runtime.config import ServeConfig
    from hotpolicy.runtime.engine import ENGINES
    from hotpolicy.runtime.versions.checks import Checks
    from hotpolicy.runtime.versions.watch import OFF, Guard

    read = _read(file) if file else {}
    given = dict(given)
    fronts = {name: given.pop(name) for name in ("gr00t", "gr00t_kill", "openpi", "keymaps") if name in given}
    served = front_settings(read.pop("fronts", {}), **fronts)
    bounds = read.pop("guard", {})  # a mapping, or False
    values = {**read, **given}
    checks = Checks(guard=Guard(**(bounds or {})) if values.pop("guard", bounds is not False) else OFF)
    store, folder = Path(values.pop("store", STORE)), values.pop("folder", None)
    folder = None if folder is None else shipped(Path(folder))
    engine = values.pop("engine", None) or _engine_for(folder)
    own: dict[str, Any] = {name: values.pop(name) for name in ("threads", *OWNERS) if name in values}
    if engine not in ENGINES:
        raise ConfigError(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}")
    if not 1 <= own.get("threads", 1) <= 256:
        raise ConfigError(f"threads: expected a number from 1 to 256, got {own['threads']}")
    if foreign := sorted(name for name, owner in OWNERS.items() if name in own and owner != engine):
        raise ConfigError(f"{foreign[0]}: an option of the {OWNERS[foreign[0]]} engine, the engine is {engine}")
    return ServeOptions(store, engine, own, ServeConfig(**values, **served), checks, folder)


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


def _engine_for(folder: Path | None) -> str:
    from hotpolicy.runtime.graphs.exported import is_exported

    if (folder is not None and is_exported(folder)) or find_spec("torch") is None:
        return "onnx"
    return "torch"


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


def _read(file: Path) -> dict[str, Any]:
    fields = Fields.read(file)
    found: dict[str, Any] = {}
    for name in ("folder", "store", "engine", "endpoint", "control", "keys", "device", "dtype"):
        if fields.has(name):
            found[name] = fields.text(name)
    for name in ("threads", "max_batch", "metrics_port"):
        if fields.has(name):
            found[name] = fields.whole(name)
    for name in ("batch_window_ms", "longest_deadline_ms", "longest_inference_s", "longest_load_s", "drain_s"):
        if fields.has(name):
            found[name] = fields.number(name)
    found["fronts"] = read_sections(fields)
    if fields.has("guard"):
        found["guard"] = _guard(fields)
    fields.done()
    return found


def _guard(fields: Fields) -> dict[str, Any] | Literal[False]:
    """`guard: false`, or a section with some of the bounds."""
    if fields.is_flag("guard"):
        if fields.flag("guard"):
            return {}
        return False
    section = fields.section("guard")
    found: dict[str, Any] = {
        name: section.number(name, above=0) for name in ("margin", "step", "slowdown") if section.has(name)
    }
    if section.has("grace_ms"):
        found["grace_ms"] = section.number("grace_ms")
    if section.has("trips"):
        found["trips"] = section.whole("trips")
    section.done()
    return found


def _announce(server: PolicyServer, options: ServeOptions, as_json: bool) -> None:
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
