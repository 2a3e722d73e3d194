"""`hotpolicy keys new | allow | list | revoke`: who may reach a server from another computer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotpolicy.launch import console
from hotpolicy.launch.options import AsJson
from hotpolicy.runtime.errors import ConfigError

if TYPE_CHECKING:
    from hotpolicy.launch.profile import Profile
    from hotpolicy.runtime.keys import ClientKeys

keys = typer.Typer(
    no_args_is_help=True,
    help="Make keys for a server and its clients, and say who may come in from another computer.",
)

ServerFolder = Annotated[
    Path, typer.Option("--server", envvar="HOTPOLICY_KEYS", help="Folder of the server's keys and list of clients.")
]


@keys.command()
def new(
    server: Annotated[Path | None, typer.Option(help="Make a server's keys, in this folder.")] = None,
    client: Annotated[str | None, typer.Option(help="Make keys for a robot or an operator of this name.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where a client's keys go. Default: ~/.config/hotpolicy/keys.")
    ] = None,
) -> None:
    """Make a pair of keys: a public one to carry to the other side, and a secret one that stays here. Neither is ever
    replaced."""
    from hotpolicy.runtime.keys import SERVER, new_pair, save

    if (server is None) == (client is None):
        raise ConfigError("keys: expected one of --server DIR and --client NAME")
    name, where = (SERVER, server) if server else (str(client), folder or _own_folder())
    public, secret = save(new_pair(name), where)
    typer.echo(f"secret, stays here: {secret}")
    if server:
        typer.echo(f"public, for its clients: {public}")
        typer.echo(f"next: hotpolicy keys allow NAME.key --server {server}; hotpolicy serve --keys {server} ...")
    else:
        typer.echo(f"public, for the server: {public}")
        typer.echo(f"next, at the server: hotpolicy keys allow {public.name} --server DIR [--operator]")
        typer.echo(f"and here: hotpolicy run --key {secret} --server-key server.key ...")


@keys.command()
def allow(
    key: Annotated[Path, typer.Argument(help="A client's public key, NAME.key.")],
    server: ServerFolder,
    operator: Annotated[
        bool, typer.Option("--operator", help="It may also command: swap, roll back, stop the server.")
    ] = False,
) -> None:
    """Let a client in. A server that runs knows at once. Again with or without --operator changes what it may do."""
    from hotpolicy.runtime import keys as files

    client = files.allow(server, key, "operator" if operator else "robot")
    typer.echo(f"{client.name} may come in as {client.role}")


@keys.command("list")
def list_clients(server: ServerFolder, as_json: AsJson = False) -> None:
    """Show who may come in."""
    from hotpolicy.runtime.keys import read_clients

    rows = [{"name": c.name, "role": c.role, "key": c.public.decode()} for c in read_clients(server)]
    console.show(rows, ("name", "role", "key"), as_json)


@keys.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The client's name in the list.")],
    server: ServerFolder,
) -> None:
    """Let a client in no more. A server that runs drops what it sends from a second later on."""
    from hotpolicy.runtime import keys as files

    files.revoke(server, name)
    typer.echo(f"{name} may not come in any more")


def client_keys(key: Path | None, server_key: Path | None, profile: Profile | None = None) -> ClientKeys | None:
    """As given, else the profile's; None where there are none. Raises ConfigError."""
    from hotpolicy.runtime.keys import ClientKeys

    if key is None and server_key is None and profile is not None:
        key, server_key = profile.key, profile.server_key
    if key is None or server_key is None:
        if key or server_key:
            raise ConfigError("key: expected both --key NAME.key_secret and --server-key server.key, or neither")
        return None
    return ClientKeys.load(key, server_key)


def _own_folder() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME", "~/.config")).expanduser() / "hotpolicy" / "keys"
