"""`hotpolicy serve`: a folder or a store, an engine and two sockets become a policy server in the foreground."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

import typer

from hotpolicy.launch.options import STORE
from hotpolicy.launch.serving.options import serve_options
from hotpolicy.launch.serving.server import announce, make_server, serve_until_it_ends


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
        "provider": provider,
        "cache": cache,
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
    threading.Thread(target=announce, args=(server, options, as_json), name="ready-line", daemon=True).start()
    serve_until_it_ends(server)
