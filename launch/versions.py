"""`hotpolicy versions | add | swap | rollback | status | history`: which policy version serves, and another one."""

from __future__ import annotations

import getpass
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotpolicy.launch import console
from hotpolicy.launch.options import CONTROL, STORE, AsJson, Control, Key, ServerKey, StoreFolder
from hotpolicy.runtime import durable
from hotpolicy.runtime.errors import ConfigError

if TYPE_CHECKING:
    from hotpolicy.runtime.client import ControlClient
    from hotpolicy.runtime.store import Store

SHIPPED = Path(__file__).parent / "assets"

Request = Annotated[
    str | None,
    typer.Option("--request-id", help="Name of this request; repeating one is harmless. Default: a fresh one."),
]


def versions(
    control: Control = CONTROL, key: Key = None, server_key: ServerKey = None, as_json: AsJson = False
) -> None:
    """List the versions a running server can serve."""
    with connect(control, key, server_key) as client:
        rows = client.versions()["versions"]
    shown = [{**row, "made_by": row["provenance"].get("strategy") or row["provenance"].get("made_by")} for row in rows]
    console.show(shown if not as_json else rows, ("id", "role", "kind", "parent", "family", "made_by"), as_json)


def add(
    bundle: Annotated[
        Path,
        typer.Argument(
            help="Folder of a sealed policy bundle or of an exported policy, or the name of what comes along: nano."
        ),
    ],
    store: StoreFolder = STORE,
) -> None:
    """Copy a policy into a store, verified whole, and print its version."""
    from hotpolicy.runtime.graphs.exported import is_exported

    folder = shipped(bundle)
    typer.echo(open_store(store, onnx=is_exported(folder)).add(folder))


def swap(
    version: Annotated[
        str,
        typer.Argument(
            help="Version id, a unique beginning of one, or `previous`; or a folder (exported or sealed), which "
            "the server reads and adds to its store."
        ),
    ],
    control: Control = CONTROL,
    key: Key = None,
    server_key: ServerKey = None,
    request_id: Request = None,
    as_json: AsJson = False,
) -> None:
    """Load a version beside the live one, check it, and make it live between two chunks. No request is lost."""
    if (folder := Path(version) / "manifest.json").is_file():
        version = str(folder.parent.resolve())
    with connect(control, key, server_key) as client:
        reply = client.swap(version, request_id=request_id or uuid.uuid4().hex, by=getpass.getuser())
    _show_change(reply, as_json)


def rollback(
    control: Control = CONTROL,
    key: Key = None,
    server_key: ServerKey = None,
    request_id: Request = None,
    as_json: AsJson = False,
) -> None:
    """Go back to the previous version, which is still in memory. A second rollback goes forward again."""
    with connect(control, key, server_key) as client:
        reply = client.rollback(request_id=request_id or uuid.uuid4().hex, by=getpass.getuser())
    _show_change(reply, as_json)


def status(control: Control = CONTROL, key: Key = None, server_key: ServerKey = None, as_json: AsJson = False) -> None:
    """Show which versions are live, previous and staged, and the server's faults."""
    with connect(control, key, server_key) as client:
        console.show_one({"state": client.ping(), **_facts(client.status())}, as_json)


def history(control: Control = CONTROL, key: Key = None, server_key: ServerKey = None, as_json: AsJson = False) -> None:
    """List every change of the live version, oldest first: when, what, by whom, and why if by the server itself."""
    with connect(control, key, server_key) as client:
        changes = client.history()["changes"]
    rows = changes if as_json else [{**change, "reason": (change["verdict"] or {}).get("reason")} for change in changes]
    console.show(rows, ("at", "action", "version", "before", "by", "reason"), as_json)


def connect(control: str, key: Path | None = None, server_key: Path | None = None) -> ControlClient:
    from hotpolicy.launch.keys import client_keys
    from hotpolicy.runtime.client import ControlClient

    return ControlClient(control, keys=client_keys(key, server_key))


def shipped(folder: Path) -> Path:
    """The folder of what comes along, where that is named."""
    inside = SHIPPED / folder
    return inside if len(folder.parts) == 1 and inside.is_dir() else folder


def open_store(folder: Path, onnx: bool = False) -> Store:
    """With `onnx`, one that keeps exported folders too. Raises ConfigError when the folder cannot be one."""
    try:
        if onnx:
            from hotpolicy.runtime.graphs.onnx_store import OnnxStore

            return OnnxStore(folder)
        from hotpolicy.runtime.store import Store

        return Store(folder)
    except OSError as error:
        raise ConfigError(f"store: expected a folder, {durable.refusal(error, folder)}") from error


def _show_change(reply: dict[str, Any], as_json: bool) -> None:
    if as_json:
        console.show_one(reply, as_json)
        return
    if not reply.get("changed", True):
        typer.echo(f"{reply['version']} is live already")
        return
    parts = {"load": "load_ms", "checks": "verify_ms", "flip": "flip_ms"}
    times = ", ".join(f"{name} {reply[key]:.3g} ms" for name, key in parts.items() if key in reply)
    typer.echo(f"{reply['version']} is live (was {reply['before']}); {times}")


def _facts(reply: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in reply.items() if key not in ("kind", "request_id")}
